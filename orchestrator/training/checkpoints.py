"""The checkpoints of a stage: which one to resume from, what it takes to publish one, how the last becomes an artifact.

How they get to the disk beside the training is `saving.py`'s business, which of them stay `retention.py`'s.
"""

import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts import MANIFEST, Checkpoint, write_json
from orchestrator.errors import InputError
from orchestrator.journal import Journal
from orchestrator.stopping import lacking_s, measured_save_s
from orchestrator.training.config import TrainConfig
from orchestrator.training.elastic import WEIGHTS, tensors
from orchestrator.training.frozen import Frozen
from orchestrator.training.pace import Pace
from orchestrator.training.retention import STATE, checkpoint_path, newest, retire, written_digests
from orchestrator.training.saving import Draft, Saved, Saver
from orchestrator.training.writing import Share, together, write_index

if TYPE_CHECKING:
    from orchestrator.training.engine import Engine
    from orchestrator.world import World

log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20  # summed up while it is in the processor's cache


class Checkpoints:
    """The checkpoints of one stage: saved whole or not at all, the newest whole one is where to resume."""

    def __init__(
        self,
        directory: Path,
        *,
        fingerprint: str,
        train: TrainConfig,
        seed: int,
        world: "World",
        journal: Journal | None = None,
    ) -> None:
        """Keeps them in `directory`, for the stage with this fingerprint; says in the journal what they cost."""
        self.directory = directory
        self._fingerprint, self._train, self._seed, self._world = fingerprint, train, seed, world
        self._pace = Pace(train)
        self._frozen = Frozen(world)
        self.save_s = 0.0  # how long the slowest save took, as far as this process knows
        self.saver = Saver(
            directory,
            publish=self._publish,
            ended=self._ended,
            in_background=train.save.in_background,
            world=world,
            journal=journal or Journal(None),
        )

    def resume(self, engine: "Engine") -> int:
        """Loads the newest whole checkpoint; returns its step, or 0. Collective: every rank must call."""
        self.saver.finish()
        step = self._newest_intact()
        self.save_s = self._world.broadcast(measured_save_s(self.directory.parent) if self._world.is_main else 0.0)
        if step:
            path = self.path(step)
            engine.load(path, step=step)
            self._frozen.find(path, engine.held)
            log.info("resumed at step %d from %s", step, path)
        nodes = len(set(self._world.gather(socket.gethostname()))) if self._pace.measures else 1
        self._pace.start(step, nodes=nodes)
        return step

    def saves_at(self, step: int) -> bool:
        """Tells whether a checkpoint is due after this step; asked once a step."""
        return self._pace.due(step)

    def refuse_unknown_metric(self, measured: Mapping[str, float]) -> None:
        """Raises InputError where the best is to be chosen by what nobody measures."""
        best = self._train.save.keep_best
        if best is not None and best.metric not in measured:
            names = ", ".join(measured)
            raise InputError(f"train.save.keep_best.metric: {best.metric!r} is not measured; allowed: {names}")

    def fits(self, left_s: float) -> bool:
        """Tells whether a save will be done on every rank before it is killed, going by those before.

        Collective: every rank must call.
        """
        return self._world.highest(lacking_s(self.save_s, left_s)) <= 0

    def save(self, engine: "Engine", step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Starts to save all that going on needs; `saver` says when it has its name, which is when it is complete.

        Collective: every rank must call.
        """
        self.saver.begin(step, engine.held, metrics or {}, frozen=not self._frozen.known)

    def path(self, step: int) -> Path:
        """Names the folder of the checkpoint of this step."""
        return checkpoint_path(self.directory, step)

    def promote(
        self, output: Checkpoint, step: int, description: Mapping[str, Any], extras: Mapping[str, bytes] | None = None,
        *, write: Callable[[Path], None] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Makes the weights of a checkpoint an artifact, with extra files beside them; returns its facts.

        `write` writes other weights than the checkpoint's into a folder, every rank its part. Collective: every rank
        must call.
        """
        source, target = self.path(step) / WEIGHTS, output.path
        if write is None:
            together(self._world, target, lambda: _link_tree(source, target / WEIGHTS), on_main=True)
        else:
            together(self._world, target, lambda: shutil.rmtree(target / WEIGHTS, ignore_errors=True), on_main=True)
            write(target / WEIGHTS)
        together(self._world, target, lambda: _write_files(target, extras or {}), on_main=True)
        return {**description, "tensors": tensors(target / WEIGHTS), "step": step}

    def _newest_intact(self) -> int:
        """Returns the step of the newest checkpoint whose files hold what was written; puts others out of the way.

        Collective: every rank must call, and reads its share of the files.
        """
        while True:
            found = newest(self.directory, self._fingerprint) if self._world.is_main else None
            step = self._world.broadcast(found[0] if found else 0)
            if not step:
                return 0
            path = self.path(step)
            written = self._world.broadcast(written_digests(path) if self._world.is_main else {})
            read = self._digests(path, list(written)) if written else {}
            changed = sorted(name for name, digest in written.items() if read[name] != digest)
            if not changed:
                return step
            what = f"{changed[0]} no longer holds what was written ({len(changed)} of {len(written)} files)"
            self._put_aside(path, what)

    def _put_aside(self, path: Path, fault: str) -> None:
        """Takes a checkpoint's name away, so that nobody counts on it. Collective: every rank must call."""
        aside = path.with_name(f".{path.name}.corrupt")
        together(self._world, self.directory, lambda: shutil.rmtree(aside, ignore_errors=True), on_main=True)
        together(self._world, self.directory, lambda: path.replace(aside), on_main=True)
        if self._world.is_main:
            log.warning("passing over checkpoint %s: %s; it is kept as %s", path, fault, aside.name)

    def _digests(self, folder: Path, names: Sequence[str]) -> dict[str, str]:
        """Returns the checksums of files; each rank reads a share. Collective: every rank must call."""
        mine: dict[str, str] = {}
        share = names[self._world.rank :: self._world.size]
        together(self._world, folder, lambda: mine.update({name: _digest(folder / name) for name in share}))
        return {name: digest for part in self._world.gather(mine) for name, digest in part.items()}

    def _publish(self, draft: Draft, shares: Sequence[Share]) -> None:
        """Gives a draft that all ranks have written its index, its manifest and its name, in this order."""
        began = time.perf_counter()
        files = {name: [file for share in shares for file in share.files.get(name, ())] for name in draft.held}
        files[WEIGHTS] = self._frozen.complete(draft.path, files[WEIGHTS])
        for folder, pieces in draft.held.items():
            write_index(draft.path / folder, pieces, files[folder])
        digests = {f"{folder}/{file.file}": file.xxh3 for folder, found in files.items() for file in found}
        took_s = max(share.took_s for share in shares) + time.perf_counter() - began  # the rest is quick
        write_json(draft.path / STATE, self._state(draft, took_s))
        small = [path for path in _files(draft.path) if path.relative_to(draft.path).as_posix() not in digests]
        digests |= {path.relative_to(draft.path).as_posix(): _digest(path) for path in small}
        sizes = {name: (draft.path / name).stat().st_size for name in sorted(digests)}
        manifest = {"kind": "training", "fingerprint": self._fingerprint, "files": sizes, "xxh3": digests}
        write_json(draft.path / MANIFEST, manifest)
        for place in (*(draft.path / name for name in draft.held), draft.path):
            _flush(place)
        final = self.path(draft.step)
        if final.exists():  # a torn one of the same name: resume has refused it
            shutil.rmtree(final)
        draft.path.rename(final)
        _flush(self.directory)
        self._frozen.published(final)
        retire(self.directory, self._fingerprint, self._train.save)

    def _state(self, draft: Draft, took_s: float) -> dict[str, Any]:
        return {
            "step": draft.step,
            "samples": draft.step * self._train.global_batch,  # the position in the data
            "seed": self._seed,  # of data order and dropout: both are functions of (seed, step)
            "schedule": {"name": self._train.optim.schedule, "lr": self._train.optim.lr, "steps": self._train.steps},
            "fingerprint": self._fingerprint,
            "world_size": self._world.size,
            "engine": self._train.engine.name,
            "save_s": took_s,  # the next attempt, and whoever submits it, plans its last minute with it
            "metrics": dict(draft.metrics),  # by which the best is chosen
        }

    def _ended(self, saved: Saved) -> None:
        self.save_s = max(self.save_s, saved.save_s)
        self._frozen.known = True
        if self._pace.measures:
            step_s = self._world.highest(self._pace.step_s())
            self._pace.learn(saved.step, stall_s=saved.stall_s, save_s=saved.save_s, step_s=step_s)


def _digest(path: Path) -> str:
    from xxhash import xxh3_64  # planning does without it

    digest = xxh3_64()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _link_tree(source: Path, target: Path) -> None:
    """Fills `target` with the files of `source`: hard links where the file system has them, copies elsewhere."""
    if target.exists():  # of an attempt that died before the artifact was committed
        shutil.rmtree(target)
    for path in _files(source):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except OSError:
            shutil.copyfile(path, place)


def _write_files(directory: Path, contents: Mapping[str, bytes]) -> None:
    for name, content in contents.items():
        place = directory / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def _files(directory: Path) -> list[Path]:
    return sorted(Path(folder) / name for folder, _, names in os.walk(directory) for name in names)


def _flush(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
