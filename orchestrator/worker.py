"""What every process of a stage does: builds the stage from stage.json, joins the others, runs, commits."""

import importlib.metadata
import json
import logging
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from orchestrator.artifacts import Artifact, write_json
from orchestrator.causes import PREEMPTED_EXIT, cause_of
from orchestrator.errors import DamagedArtifact, OrchError, Preempted, StageFailed, SurroundingsError
from orchestrator.heartbeat import Beat, limits_of
from orchestrator.journal import Journal
from orchestrator.lifeline import die_with
from orchestrator.plan import open_stage
from orchestrator.progress import Progress
from orchestrator.records import record
from orchestrator.redaction import Screen, hide, screen_output
from orchestrator.run import Run
from orchestrator.stage import Stage, StageContext
from orchestrator.state import outputs_ready, read_launch
from orchestrator.stopping import StopRequest
from orchestrator.world import World

PARENT = "ORCH_PARENT"  # the process id whose death ends this one
VERSIONED = ("torch", "deepspeed", "transformers", "peft", "numpy", "webdataset", "tokenizers", "safetensors", "PIL")

log = logging.getLogger(__name__)


@record
class Place:
    """Which process of which attempt this is, as the launcher said in the environment."""

    rank: int
    size: int
    attempt: int

    @classmethod
    def from_environment(cls) -> "Place":
        """Reads RANK, WORLD_SIZE and ORCH_ATTEMPT; a process started by hand is alone and the first attempt."""
        names = {"RANK": "0", "WORLD_SIZE": "1", "ORCH_ATTEMPT": "1"}
        rank, size, attempt = (int(os.environ.get(name, default)) for name, default in names.items())
        return cls(rank=rank, size=size, attempt=attempt)

    def folder(self, directory: Path) -> Path:
        """Returns where this attempt's logs and error records lie."""
        return directory / "logs" / f"attempt_{self.attempt}"


def main(arguments: list[str]) -> NoReturn:
    """Runs one process of a stage and ends it with its exit code: `python -m orchestrator.worker RUN STAGE`."""
    die_with_parent()
    run_dir, stage_name = Path(arguments[0]), arguments[1]
    place = Place.from_environment()
    _log_to_stderr(place)
    beat = Beat()
    try:
        beat = Beat.from_environment()
        run_stage(run_dir, stage_name, beat)
    except OrchError as error:
        log.error("%s: %s", type(error).__name__, error)  # noqa: TRY400  explained by itself; a traceback is noise
        code = PREEMPTED_EXIT if isinstance(error, Preempted) else error.exit_code
        _record_failure(run_dir / stage_name, beat, error, code)
    except Exception as error:
        log.exception("the stage ended with an error that orch cannot explain")
        code = 1
        _record_failure(run_dir / stage_name, beat, error, code)
    else:
        code = 0
    _leave_at_once(code)


def run_stage(run_dir: Path, stage_name: str, beat: Beat) -> None:
    """Runs one stage of a prepared run in this process. Collective: every rank must call."""
    run, place, stop = Run(run_dir), Place.from_environment(), StopRequest()
    directory = run.stage_directory(stage_name)
    document = run.stage_document(stage_name)
    stage = open_stage(document)
    world = World.from_environment() if stage.joins or place.size > 1 else World.alone()
    log.info("%s (%s) as rank %d of %d on %s", stage_name, document["stage"], world.rank, world.size, world.device)
    if world.broadcast(outputs_ready(document)):
        log.info("every output is there already: an earlier attempt ended between its last write and saying so")
        return
    if world.is_main:
        _verify(stage)
        run.record_inputs(stage_name)
        _empty_outputs(document, directory, keep=stage.keeps_parts)
    world.barrier()
    home = directory if world.is_main else None
    journal = Journal(home)
    asked = document["resources"]
    gpus = asked["nodes"] * asked["gpus_per_node"]  # of a later launch it may be others
    journal.append("attempt", number=place.attempt, ranks=world.size, gpus=gpus)
    context = StageContext(
        directory=directory, name=stage_name, fingerprint=document["fingerprint"], seed=document["seed"], world=world,
        journal=journal, progress=Progress(home, beat=beat), stop=stop, time_left_s=stop.time_left_s,
        fail=lambda error: _fail(directory, beat, error), straggler=limits_of(document).straggler,
        peak_tflops=_peak_tflops(run_dir) if gpus else None,
    )  # fmt: skip
    started = time.monotonic()
    facts = stage.run(context)
    beat.enter("ending")
    world.barrier()  # every rank has written its share
    if world.is_main:
        _commit(run, document, stage, facts)
        log.info("done in %.1f s", time.monotonic() - started)
    journal.close()
    world.barrier()


def _peak_tflops(run_dir: Path) -> float | None:
    launch = read_launch(run_dir)
    return None if launch is None else launch.tflops_per_gpu


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the one that started it dies, however it dies (Linux)."""
    parent = os.environ.get(PARENT)
    if parent is not None:
        die_with(int(parent))


def artifacts_of(inputs_or_outputs: Any) -> Iterator[tuple[str, Artifact]]:
    """Yields every artifact of a stage's Inputs or Outputs with its dotted name."""
    for field in fields(inputs_or_outputs):
        value = getattr(inputs_or_outputs, field.name)
        if isinstance(value, Artifact):
            yield field.name, value
        elif value is not None:
            yield from ((f"{field.name}.{key}", artifact) for key, artifact in value.items())


def _verify(stage: Stage) -> None:
    """Checks that every input is complete and has the files and sizes of its manifest."""
    for name, artifact in artifacts_of(stage.inputs):
        if artifact.kind == "raw":
            continue  # a data set as its authors publish it has no manifest of ours
        damage = artifact.damage()
        if damage:
            raise DamagedArtifact(f"input {name} is damaged: " + "; ".join(damage[:5]))


def _empty_outputs(document: Mapping[str, Any], directory: Path, *, keep: bool) -> None:
    """Removes what an attempt that died left of the outputs: nothing half-written may be taken for our work.

    Unless the stage itself looks at what is there (`keep`).
    """
    for name, output in document["outputs"].items():
        path = Path(output["path"])
        inside = path.resolve().is_relative_to(directory.resolve()) and path.resolve() != directory.resolve()
        if not inside or path.name == "checkpoints":
            raise SurroundingsError(f"output {name} would be written to {path}, which is not a folder of {directory}")
        if path.exists() and not keep:
            log.info("removing what an earlier attempt left in %s", path)
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)


def _commit(run: Run, document: Mapping[str, Any], stage: Stage, facts: Mapping[str, Mapping[str, Any]]) -> None:
    inputs = {name: artifact.digest() for name, artifact in artifacts_of(stage.inputs)}
    lineage = {
        "stage": document["stage"], "inputs": inputs, "versions": _versions(), "commit": _commit_of(run.directory),
    }  # fmt: skip
    for name, artifact in artifacts_of(stage.outputs):
        if name not in facts or not any(artifact.path.rglob("*")):
            raise StageFailed(
                f"{document['stage']} ended without its output {name}: it wrote nothing to {artifact.path}"
            )
        told = dict(facts[name])
        known = told.pop("sha256", {})  # not facts of their own: the manifest lists every file with its digest
        artifact.commit(document["fingerprint"], Screen().plain(told) | lineage, known)


def _versions() -> dict[str, str]:
    """Names the versions of the packages that this process has really used."""
    packages = {"PIL": "pillow"}
    used = [package for package in VERSIONED if package in sys.modules]
    versions = {package: importlib.metadata.version(packages.get(package, package)) for package in used}
    return {"python": platform.python_version(), **versions}


def _commit_of(run_dir: Path) -> str | None:
    try:
        commit: dict[str, Any] = json.loads((run_dir / "code" / "COMMIT").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return commit.get("commit")


def _fail(directory: Path, beat: Beat, error: OrchError) -> NoReturn:
    """Ends this process for an error found beside the main thread, which may be stuck for ever."""
    log.critical("%s: %s", type(error).__name__, error)
    _record_failure(directory, beat, error, error.exit_code)
    _leave_at_once(error.exit_code)


def _record_failure(directory: Path, beat: Beat, error: BaseException, exit_code: int) -> None:
    place = Place.from_environment()
    folder = place.folder(directory)
    told = hide(str(error))
    what = {"class": type(error).__name__, "message": told, "cause": cause_of(error), "exit_code": exit_code}
    where = {"step": beat.done, "phase": beat.phase, "node": socket.gethostname(), "time": time.time()}
    failure = {**what, **where}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"rank_{place.rank}.error.json", failure)
    except OSError as unwritten:
        log.warning("the failure could not be recorded: %s", unwritten)


def _log_to_stderr(place: Place) -> None:
    screen_output()
    prefix = f"rank {place.rank}" if place.size > 1 else "alone"
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s {prefix} %(levelname)s %(name)s: %(message)s"
    )


def _leave_at_once(code: int) -> NoReturn:
    """Ends the process without destructors, as everything is written.

    Those of a process group may wait for peers that wait for us, or abort: seen as "terminate called without an active
    exception" after a finished stage.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
