"""When a checkpoint is whole, which to resume from, which to keep, and how the last one becomes an artifact. No torch.

Layout: `step_########/{weights/, optimizer/, state.json, manifest.json}`; a folder gets this name by rename, when done.
"""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts import MANIFEST, Checkpoint, write_json
from orchestrator.errors import OrchError, SurroundingsError
from orchestrator.stopping import lacking_s, measured_save_s
from orchestrator.training.config import TrainConfig

if TYPE_CHECKING:
    from orchestrator.training.engine import Engine
    from orchestrator.world import World

log = logging.getLogger(__name__)

STATE = "state.json"
CHECKPOINTS = "checkpoints"
_BLOCK_BYTES = 1 << 24
_NAME = re.compile(r"step_(\d{8,})")


class Checkpoints:
    """The checkpoints of one stage: saved whole or not at all, the newest whole one is where to resume."""

    def __init__(self, directory: Path, *, fingerprint: str, train: TrainConfig, seed: int, world: "World") -> None:
        """Keeps them in `directory`, for the stage with this fingerprint."""
        self.directory = directory
        self._fingerprint, self._train, self._seed, self._world = fingerprint, train, seed, world
        self.save_s = 0.0  # how long the slowest save took, as far as this process knows

    def resume(self, engine: "Engine") -> int:
        """Loads the newest whole checkpoint; returns its step, or 0. Collective: every rank must call."""
        step = self._newest_intact()
        self.save_s = self._world.broadcast(measured_save_s(self.directory.parent) if self._world.is_main else 0.0)
        if step:
            path = self.path(step)
            engine.load(path, step=step)
            log.info("resumed at step %d from %s", step, path)
        return step

    def saves_at(self, step: int) -> bool:
        """Tells whether a checkpoint is due after this step."""
        return step % self._train.save.every_steps == 0 or step == self._train.steps

    def fits(self, left_s: float) -> bool:
        """Tells whether a save will be done on every rank before it is killed, going by those before.

        Collective: every rank must call.
        """
        return self._world.highest(lacking_s(self.save_s, left_s)) <= 0

    def save(self, engine: "Engine", step: int) -> None:
        """Saves all that going on needs, under its final name only when complete. Collective: every rank must call."""
        started = time.monotonic()
        draft = self.directory / f".step_{step:08d}.draft"
        self._together(lambda: self._clear(draft), on_main=True)
        try:
            self._together(lambda: engine.save(draft), on_main=False)
            digests = self._digests(draft)
            took_s = time.monotonic() - started  # publishing is quick
            self._together(lambda: self._publish(draft, step, took_s, digests), on_main=True)
        except OrchError:
            if self._world.is_main:
                shutil.rmtree(draft, ignore_errors=True)
            raise
        self.save_s = max(self.save_s, time.monotonic() - started)
        log.info("saved step %d in %.2f s in %s", step, time.monotonic() - started, self.path(step))

    def path(self, step: int) -> Path:
        """Names the folder of the checkpoint of this step."""
        return self.directory / f"step_{step:08d}"

    def promote(
        self, output: Checkpoint, step: int, description: Mapping[str, Any], extras: Mapping[str, bytes] | None = None
    ) -> dict[str, Any]:
        """Makes the weights of a checkpoint an artifact, with extra files beside them; returns its facts.

        Collective: every rank must call.
        """
        self._together(lambda: _link_tree(self.path(step) / "weights", output.path / "weights"), on_main=True)
        self._together(lambda: _write_files(output.path, extras or {}), on_main=True)
        tensors = json.loads((self.path(step) / "weights" / "tensors.json").read_text(encoding="utf-8"))
        return {**description, "tensors": tensors, "step": step}

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
            written = self._world.broadcast(_written_digests(path) if self._world.is_main else {})
            read = self._digests(path, list(written)) if written else {}
            changed = sorted(name for name, digest in written.items() if read[name] != digest)
            if not changed:
                return step
            what = f"{changed[0]} no longer holds what was written ({len(changed)} of {len(written)} files)"
            self._put_aside(path, what)

    def _put_aside(self, path: Path, fault: str) -> None:
        """Takes a checkpoint's name away, so that nobody counts on it. Collective: every rank must call."""
        aside = path.with_name(f".{path.name}.corrupt")
        self._together(lambda: shutil.rmtree(aside, ignore_errors=True), on_main=True)
        self._together(lambda: path.replace(aside), on_main=True)
        if self._world.is_main:
            log.warning("passing over checkpoint %s: %s; it is kept as %s", path, fault, aside.name)

    def _digests(self, folder: Path, names: Sequence[str] = ()) -> dict[str, str]:
        """Returns the checksums of files, of all by default; each rank reads a share.

        Collective: every rank must call.
        """
        if not names:
            found = [path.relative_to(folder).as_posix() for path in _files(folder)] if self._world.is_main else []
            names = self._world.broadcast(found)
        mine: dict[str, str] = {}
        self._together(
            lambda: mine.update({name: _digest(folder / name) for name in names[self._world.rank :: self._world.size]}),
            on_main=False,
        )
        return {name: digest for part in self._world.gather(mine) for name, digest in part.items()}

    def _clear(self, draft: Path) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for left_over in self.directory.glob(".step_*.draft"):
            shutil.rmtree(left_over)
        draft.mkdir()

    def _publish(self, draft: Path, step: int, took_s: float, digests: Mapping[str, str]) -> None:
        state = {
            "step": step,
            "samples": step * self._train.global_batch,  # the position in the data
            "seed": self._seed,  # of data order and dropout: both are functions of (seed, step)
            "schedule": {"name": self._train.optim.schedule, "lr": self._train.optim.lr, "steps": self._train.steps},
            "fingerprint": self._fingerprint,
            "world_size": self._world.size,
            "engine": self._train.engine.name,
            "save_s": took_s,  # the next attempt, and whoever submits it, plans its last minute with it
        }
        write_json(draft / STATE, state)
        sizes = {path.relative_to(draft).as_posix(): path.stat().st_size for path in _files(draft)}
        manifest = {"kind": "training", "fingerprint": self._fingerprint, "files": sizes, "xxh3": digests}
        write_json(draft / MANIFEST, manifest)
        final = self.path(step)
        if final.exists():  # a torn one of the same name: resume has refused it
            shutil.rmtree(final)
        draft.rename(final)
        _flush(self.directory)
        for _, old in list(whole_checkpoints(self.directory, self._fingerprint))[self._train.save.keep_last :]:
            shutil.rmtree(old)

    def _together(self, work: Callable[[], object], *, on_main: bool) -> None:
        """Works, and raises on all ranks if it failed on any. Collective: every rank must call."""
        problem = None
        try:
            if self._world.is_main or not on_main:
                work()
        except (OSError, SurroundingsError) as error:
            problem = str(error)
        problems = [text for text in self._world.gather(problem) if text]
        if problems:
            free_gb = _free_bytes(self.directory) / 1e9
            raise SurroundingsError(f"cannot write in {self.directory}: {problems[0]} ({free_gb:.2f} GB free there)")


def newest(directory: Path, fingerprint: str) -> tuple[int, Path] | None:
    """Finds the newest whole checkpoint of the stage with this fingerprint."""
    return next(whole_checkpoints(directory, fingerprint), None)


def whole_checkpoints(directory: Path, fingerprint: str) -> Iterator[tuple[int, Path]]:
    """Yields step and folder of every whole checkpoint, newest first; says why it passes over the others."""
    named = [(int(match[1]), path) for path in directory.glob("step_*") if (match := _NAME.fullmatch(path.name))]
    for step, path in sorted(named, reverse=True):
        if fault := _fault(path, fingerprint):
            log.warning("passing over checkpoint %s: %s", path, fault)
        else:
            yield step, path


def _fault(path: Path, fingerprint: str) -> str:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, size in manifest["files"].items():
            held = (path / name).stat().st_size
            if held != size:
                return f"{name} has {held} bytes instead of {size}"
    except (OSError, ValueError, KeyError) as error:
        return f"it is torn ({error})"
    return "" if manifest["fingerprint"] == fingerprint else "it was made by another plan of this stage"


def _written_digests(path: Path) -> dict[str, str]:
    """Returns the checksums that a checkpoint's files had when it was written; none of one that is older than they."""
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    digests: dict[str, str] = manifest.get("xxh3", {})
    return digests


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


def _free_bytes(directory: Path) -> int:
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free
