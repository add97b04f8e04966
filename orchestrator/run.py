"""Run: the folder of one launch, who works on it, and what is written there before anything starts."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from orchestrator.artifacts import MANIFEST, Artifact, write_json, write_text
from orchestrator.errors import InputError, SurroundingsError
from orchestrator.history import ARCHIVE, CHECKPOINTS, INPUTS, SHORT, STAGE
from orchestrator.lock import RunLock, holder_of
from orchestrator.plan import Plan, PlannedStage
from orchestrator.recipe import Recipe, dump_recipe
from orchestrator.snapshot import SPARE_BYTES, refuse_dirty, write_snapshot
from orchestrator.state import read_state
from orchestrator.typed import plain

__all__ = ["Run", "RunLock"]

RECIPE = "recipe.yaml"
PLAN = "plan.json"


class Run:
    """The folder of one recipe's work: recipe.yaml, code/, one folder a stage."""

    def __init__(self, directory: Path) -> None:
        """Names the folder; nothing is read or written yet."""
        self.directory = directory

    @classmethod
    def find(cls, name_or_path: str, runs: Path = Path("runs")) -> "Run":
        """Opens an existing run by folder or by name under `runs`; InputError lists the known ones."""
        candidates = [Path(name_or_path)] if "/" in name_or_path else [runs / name_or_path, Path(name_or_path)]
        for directory in candidates:
            if (directory / RECIPE).is_file():
                return cls(directory)
        known = cls.known(runs)
        close = get_close_matches(name_or_path, known, n=1)
        meant = f"; did you mean '{close[0]}'?" if close else ";"
        listed = f"runs in {runs}: {', '.join(known)}" if known else f"there are no runs in {runs}"
        raise InputError(f"there is no run {name_or_path!r}{meant} {listed}")

    @staticmethod
    def known(runs: Path) -> list[str]:
        """Lists the names of the runs in a folder."""
        return sorted(path.parent.name for path in runs.glob(f"*/{RECIPE}"))

    def lock(self, command: str) -> RunLock:
        """Takes the run for this process, or raises RunBusy naming the holder. Makes the folder if needed."""
        with _explained(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        return RunLock.take(self.directory, command)

    def holder(self) -> dict[str, Any] | None:
        """Returns who holds the run now ({pid, host, user, started, command}), or None if nobody does."""
        return holder_of(self.directory)

    def prepare(self, plan: Plan, code_root: Path, *, require_clean: bool = False) -> None:
        """Writes all that stages need: code snapshot, stage folders with stage.json, plan.json, recipe.yaml last.

        The caller holds the lock. `plan.json` is `plan.document()`: the stages in order with action and reason.
        """
        plan.check()
        if require_clean:
            refuse_dirty(code_root)
        code = {module: digest for stage in plan.stages for module, digest in stage.identity["code"].items()}
        with _explained(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            write_snapshot(self.directory, code_root, code)
            _keep_room(self.directory)
            for stage in plan.stages:
                self._settle(stage)
                write_json(self.stage_directory(stage.name) / STAGE, self._document(stage, plan.recipe))
            write_json(self.directory / PLAN, plan.document())
            write_text(self.directory / RECIPE, dump_recipe(plan.recipe))

    def stage_directory(self, name: str) -> Path:
        """Returns the folder of a stage."""
        return self.directory / name

    def stage_document(self, name: str) -> dict[str, Any]:
        """Reads a stage's `stage.json`."""
        return _read_document(self.stage_directory(name) / STAGE)

    def plan_document(self) -> dict[str, Any]:
        """Reads `plan.json`: the stages of the last launch in order, each with its action and reason."""
        return _read_document(self.directory / PLAN)

    def record_inputs(self, name: str) -> None:
        """Notes the digests of the inputs a stage is about to read, in `inputs.json` of its folder.

        The worker's first rank calls it before `stage.run`. Later plans reuse or resume the work only if the inputs
        are still these. Checkpoints that were made from other content move to the archive: the stage starts afresh.
        """
        folder = self.stage_directory(name)
        digests = dict(_digests(self.stage_document(name)["inputs"]))
        before = _read_document(folder / INPUTS) if (folder / INPUTS).exists() else digests
        with _explained(folder):
            if before != digests and (folder / CHECKPOINTS).exists():
                kept = self._archive_place(name, self.stage_document(name)["fingerprint"])
                kept.mkdir(parents=True)
                (folder / CHECKPOINTS).rename(kept / CHECKPOINTS)
            write_json(folder / INPUTS, digests)

    def _document(self, stage: PlannedStage, recipe: Recipe) -> dict[str, Any]:
        """Returns what `stage.json` holds: the stage, and what whoever runs it has to know of this launch."""
        earlier = len(read_state(self.stage_directory(stage.name)).attempts)
        rules = {"retry": plain(recipe.retry), "watch": plain(recipe.watch), "alerts": plain(recipe.alerts)}
        return {**stage.document(), **rules, "earlier_attempts": earlier}

    def _settle(self, stage: PlannedStage) -> None:
        """Leaves in the stage's folder what the plan builds on, and nothing else; the rest goes to the archive."""
        here = self.stage_directory(stage.name)
        if stage.found != here and here.exists():
            fingerprint = _fingerprint_of(here) or "unknown"
            here.rename(self._archive_place(stage.name, fingerprint))
        if stage.found is not None and stage.found != here:
            stage.found.rename(here)
        here.mkdir(exist_ok=True)
        if stage.action != "reuse":
            self._put_away_outputs(stage)

    def _put_away_outputs(self, stage: PlannedStage) -> None:
        """Takes damaged outputs out of the way: a manifest among them would look like finished work."""
        finished = [output.path for output in stage.outputs.values() if (output.path / MANIFEST).exists()]
        if finished:
            place = self._archive_place(stage.name, stage.fingerprint)
            place.mkdir()
            for path in finished:
                path.rename(place / path.name)

    def _archive_place(self, name: str, fingerprint: str) -> Path:
        """Returns a free place in the archive; a second folder of one fingerprint gets a number."""
        folder = self.directory / ARCHIVE / name
        folder.mkdir(parents=True, exist_ok=True)
        place, number = folder / fingerprint[:SHORT], 1
        while place.exists():
            number += 1
            place = folder / f"{fingerprint[:SHORT]}_{number}"
        return place


@contextlib.contextmanager
def _explained(place: Path) -> Iterator[None]:
    """Turns what the operating system refuses into a sentence for the user."""
    try:
        yield
    except OSError as error:
        raise SurroundingsError(_sentence(place, error)) from error


def _sentence(place: Path, error: OSError) -> str:
    where = Path(error.filename or place)
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        where = next((above for above in (where, *where.parents) if above.exists()), where)  # below a file is nothing
        return f"{place} cannot be a run folder: {where} is a file, needs a folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"there is no space left for {place}: {error.strerror}; nothing was started"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{place} cannot be written to: {error.strerror} ({where})"
    return f"{place} could not be prepared: {error}"


def _keep_room(directory: Path) -> None:
    if shutil.disk_usage(directory).free < SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: the run was not prepared, or has no such stage") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return document


def _fingerprint_of(folder: Path) -> str | None:
    try:
        fingerprint = _read_document(folder / STAGE).get("fingerprint")
    except InputError:
        return None
    return fingerprint if isinstance(fingerprint, str) else None


def _digests(inputs: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the digest of every input in a stage.json, by its wired name."""
    for name, given in inputs.items():
        if given is not None and isinstance(given.get("path"), str):
            yield prefix + name, Artifact(Path(given["path"])).digest()
        elif given is not None:
            yield from _digests(given, f"{name}.")
