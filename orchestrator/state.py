"""What became of a run: attempts and states on disk, and the answer of `orch status --json`."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from orchestrator.artifacts import Artifact, read_replaced, write_json
from orchestrator.causes import Cause
from orchestrator.errors import InputError, SurroundingsError
from orchestrator.history import last_checkpoint
from orchestrator.journal import read_backwards
from orchestrator.records import record
from orchestrator.redaction import hide

STATE = "state.json"
LAUNCH = "launch.json"
STAGE = "stage.json"
TRACKING = "tracking.json"

T = TypeVar("T")
State = Literal["waiting", "queued", "running", "done", "failed", "cancelled"]


@record
class Attempt:
    """One try of a stage: where it ran, and how it ended."""

    number: int
    launcher: str
    job_id: str
    nodes: tuple[str, ...]
    started: float  # seconds since 1970
    ended: float | None = None
    state: State = "running"
    cause: Cause | None = None
    detail: str = ""
    from_step: int | None = None
    to_step: int | None = None
    evidence: tuple[str, ...] = ()  # what the verdict rests on: records, signals, what the cluster says
    rank: int | None = None  # the rank that failed first
    node: str | None = None  # where it ran
    decision: str = ""  # what was done about it, and why
    saved_step: int | None = None  # of the last whole checkpoint when it ended: where the next attempt goes on


@record
class Ending:
    """How an attempt ended, and why: the verdict."""

    state: State
    cause: Cause | None = None
    detail: str = ""
    evidence: tuple[str, ...] = ()
    rank: int | None = None  # the one that failed first
    node: str | None = None  # where it ran


@record
class StageState:
    """What became of a stage so far."""

    state: State = "waiting"
    attempts: tuple[Attempt, ...] = ()

    def attempt(self, number: int) -> Attempt:
        """Returns the attempt of that number."""
        return next(attempt for attempt in self.attempts if attempt.number == number)


@record
class Launch:
    """The latest launch of a run: who works on it, and what it set out to do. Kept in `launch.json`."""

    recipe: str
    launcher: str
    host: str
    user: str
    started: float
    stages: tuple[Mapping[str, Any], ...]  # in order: {"name", "action", "reason"}
    tracking: Mapping[str, Any] = field(default_factory=dict)  # {"uri", "experiment", "also", "register"}
    notify: Mapping[str, Any] = field(default_factory=dict)  # whom to tell: the fields of notify.Notify
    tflops_per_gpu: float | None = None  # the peak of the place's GPUs in bf16; None = it does not say
    pid: int | None = None  # of the supervisor
    ended: float | None = None
    notes: tuple[str, ...] = ()  # what the user should hear at the end

    def tells(self) -> bool:
        """Tells whether somebody is to hear what the journals say."""
        return bool(self.tracking.get("uri") or self.tracking.get("also"))

    def action(self, stage: str) -> Mapping[str, Any]:
        """Returns what this launch set out to do with a stage; empty if it does not know it."""
        return next((entry for entry in self.stages if entry["name"] == stage), {})


def read_launch(run: Path) -> Launch | None:
    """Reads the latest launch of a run; None before the first, or if what is there is none."""
    plain = _read_json(run / LAUNCH)
    return None if plain is None else _as_record(Launch, plain, ("stages", "notes"))


def write_launch(run: Path, launch: Launch) -> None:
    """Writes `launch.json`. The caller holds the run's lock."""
    write_json(run / LAUNCH, asdict(replace(launch, notes=tuple(map(hide, launch.notes)))))


def read_tracking(directory: Path) -> dict[str, Any]:
    """Reads what the MLflow forwarder noted in a folder; empty before it told anything."""
    return _read_json(directory / TRACKING) or {}


def read_plain_stage(directory: Path) -> dict[str, Any]:
    """Reads the `stage.json` of a stage's folder."""
    plain = _read_json(directory / STAGE)
    if plain is None:
        raise InputError(f"{directory} is not the folder of a stage: there is no readable {STAGE} in it")
    return plain


def read_state(directory: Path) -> StageState:
    """Reads what became of the stage in this folder."""
    plain = _read_json(directory / STATE) or {}
    written = plain.get("attempts")
    attempts = [_as_record(Attempt, one, ("nodes", "evidence")) for one in written] if isinstance(written, list) else []
    known = tuple(attempt for attempt in attempts if attempt is not None)
    return StageState(state=plain.get("state", "waiting"), attempts=known)


def write_state(directory: Path, state: StageState) -> None:
    """Writes `state.json`. The caller holds the run's lock."""
    write_json(directory / STATE, asdict(state))


def open_attempt(directory: Path, *, launcher: str, job_id: str, nodes: tuple[str, ...]) -> Attempt:
    """Begins the next attempt of a stage. The caller holds the run's lock."""
    before = read_state(directory)
    number = max((attempt.number for attempt in before.attempts), default=0) + 1
    attempt = Attempt(
        number=number, launcher=launcher, job_id=job_id, nodes=nodes, started=time.time(),
        from_step=_saved_step(directory),
    )  # fmt: skip
    write_state(directory, StageState(state="running", attempts=(*before.attempts, attempt)))
    return attempt


def close_attempt(directory: Path, ending: Ending, *, number: int | None = None, decision: str = "") -> Attempt:
    """Ends an attempt of a stage, the last one if no number is given, and gives the stage its state.

    The caller holds the run's lock.
    """
    before = read_state(directory)
    closed = ended_attempt(directory, before, ending, number=number)
    write_closed(directory, before, replace(closed, decision=decision), state=ending.state)
    return closed


def ended_attempt(directory: Path, before: StageState, ending: Ending, *, number: int | None = None) -> Attempt:
    """Returns an attempt as it is once it has ended, without writing anything."""
    attempt = before.attempts[-1] if number is None else before.attempt(number)
    return replace(
        attempt,
        ended=time.time(),
        state=ending.state,
        cause=ending.cause,
        detail=hide(ending.detail),
        to_step=None if attempt.from_step is None else _last_step(directory, attempt),
        evidence=tuple(map(hide, ending.evidence)),
        rank=ending.rank,
        node=ending.node,
        saved_step=_saved_step(directory),
    )


def write_closed(directory: Path, before: StageState, closed: Attempt, *, state: State) -> None:
    """Puts an ended attempt in the place of the open one of its number. The caller holds the run's lock."""
    attempts = tuple(closed if one.number == closed.number else one for one in before.attempts)
    write_state(directory, StageState(state=state, attempts=attempts))


def _saved_step(directory: Path) -> int | None:
    """Returns the step that an attempt would go on from; None for a stage that counts no steps."""
    step = last_checkpoint(directory)
    return 0 if step is None and read_plain_stage(directory).get("steps") is not None else step


def _as_record(cls: type[T], plain: Any, lists: Sequence[str]) -> T | None:
    """Makes a record of what a file says; keys of a later version are passed over, and None is what it cannot be."""
    if not isinstance(plain, Mapping):
        return None
    names = {field.name for field in fields(cast("Any", cls))}
    given = {name: value for name, value in plain.items() if name in names}
    try:
        return cls(**{**given, **{name: tuple(given[name]) for name in lists if name in given}})
    except TypeError:  # something is missing, or is no list
        return None


def outputs_ready(plain: Mapping[str, Any]) -> bool:
    """Tells whether every output of a stage (its `stage.json`) is complete and the work of this very plan."""
    return all(_made_by(plain["fingerprint"], output) for output in plain["outputs"].values())


def _made_by(fingerprint: str, output: Mapping[str, Any]) -> bool:
    try:
        manifest = Artifact(Path(output["path"])).manifest()
        return manifest is not None and (manifest["fingerprint"], manifest["kind"]) == (fingerprint, output["kind"])
    except (ValueError, KeyError, TypeError):  # what is no manifest says nothing of whose work it is
        return False


def _last_step(directory: Path, attempt: Attempt) -> int | None:
    for event in read_backwards(directory):  # a stage of a million steps must not keep its follower waiting
        if event.get("time", 0.0) < attempt.started:
            break
        if event.get("event") == "metrics":
            return int(event["step"])
    return attempt.from_step


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        plain = json.loads(read_replaced(path))
    except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError):
        return None
    except OSError as error:  # not the same as nothing there: attempts that cannot be read now are not forgotten
        raise SurroundingsError(f"{path} cannot be read: {error.strerror}") from error
    return plain if isinstance(plain, dict) else None
