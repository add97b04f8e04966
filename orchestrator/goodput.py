"""Where the hours of a run went: by class, for each attempt, each stage and the whole run. No torch.

Computed from what is on disk anyway: `launch.json`, and of each stage `stage.json`, `state.json` and the journal
(`tally.py`). What nobody recorded is not guessed; where two things cannot be told apart, the class says so:

    queue       between the moment from which a stage could have begun (its launch, the end of those it reads from, the
                end of the attempt before) and its beginning: waiting for nodes, and pauses before another try. Nobody
                is billed for it, so it is no part of what was held. Of a launch's first attempts it is known of the
                latest launch only.
    startup     from the beginning of an attempt to its first step: processes, model, checkpoint; of a stage without
                steps until its processes have joined
    productive  computing steps that count; of a stage without steps, its work
    evaluation  the work of a stage whose only outputs are reports
    redone      steps that were computed again, or will have to be, or were left out because they would have done harm
    checkpoint  what training stood still for saves
    data_wait   waiting for data in steps that count, on the rank that waited longest
    idle        held after the last step or save of an attempt: finishing outputs, a hang, an end that was noticed late
    unknown     the work of an attempt of a stage without steps that did not end well: how much was kept, nobody notes;
                and an attempt that is done and left no word of a step

Hours are those of GPUs where a stage asks for any, of processes where it asks for none. A run with both counts GPUs.
Work that was put into the archive does not count.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from orchestrator.artifacts import write_json
from orchestrator.errors import OrchError
from orchestrator.journal import JOURNAL
from orchestrator.planned import planned_stage
from orchestrator.records import record
from orchestrator.state import Attempt, Launch, StageState, read_launch, read_state
from orchestrator.tails import Tail
from orchestrator.tally import Heard, Tally

Unit = Literal["GPU", "process"]

CLASSES = (
    "queue", "startup", "productive", "evaluation", "redone", "checkpoint", "data_wait", "idle", "unknown",
)  # fmt: skip
USEFUL = frozenset({"productive", "evaluation"})
KEPT = "goodput.json"  # in a stage's folder: what was found once nothing of it ran, for whoever asks next
_VERSION = 1


@record
class Spending:
    """Where the time of an attempt, a stage or a run went."""

    name: str  # of the run or the stage; "1", "2", ... of attempts
    unit: Unit
    hours: Mapping[str, float]  # class -> hours of all GPUs, or processes, together; every class is there
    seconds: Mapping[str, float]  # class -> seconds by the clock, of all attempts together
    parts: tuple["Spending", ...] = ()  # the stages of a run, the attempts of a stage

    @property
    def held_hours(self) -> float:
        """Returns the hours that were held, and paid for: all but the queue."""
        return sum(hours for name, hours in self.hours.items() if name != "queue")

    @property
    def useful(self) -> float | None:
        """Returns the goodput: the share of what was held that was productive; None before anything was."""
        held = self.held_hours
        return sum(self.hours[name] for name in USEFUL) / held if held > 0 else None

    def plain(self) -> dict[str, Any]:
        """Returns it, without its parts, as JSON has it."""
        return {
            "unit": self.unit, "held_hours": self.held_hours, "useful": self.useful, "hours": dict(self.hours),
            "seconds": dict(self.seconds),
        }  # fmt: skip


def spending(run: Path, *, now: float | None = None) -> Spending:
    """Adds up a run folder. Of what runs, only what was journaled counts; `now` is for attempts that said nothing yet.

    Raises SurroundingsError or OSError if the folder cannot be read; one that was never launched has spent nothing.
    """
    return Books(run).read(now=now)


class Books:
    """Adds up a run again and again, reading of its journals only what was added since."""

    def __init__(self, run: Path) -> None:
        """Reads nothing yet."""
        self._run = run
        self._books: dict[str, _StageBook] = {}

    def read(self, *, now: float | None = None) -> Spending:
        """Returns where the hours went up to now."""
        launch = read_launch(self._run)
        if launch is None:
            return _total(self._run.name, ())
        names = [str(entry["name"]) for entry in launch.stages]
        states = {name: read_state(self._run / name) for name in names}
        begun = [name for name in names if states[name].attempts]
        return _total(self._run.name, tuple(self._stage(name, launch, states, now) for name in begun))

    def stage(self, name: str, *, now: float | None = None) -> Spending:
        """Returns the same for one stage; what it reads from is looked at for its time in the queue only."""
        launch = read_launch(self._run)
        if launch is None:
            return _total(name, ())
        document = planned_stage(self._run / name, launch.started)
        wanted = [name, *(parent for parent in document.get("after", ()) if (self._run / parent).is_dir())]
        states = {stage: read_state(self._run / stage) for stage in wanted}
        return self._stage(name, launch, states, now) if states[name].attempts else _total(name, ())

    def _stage(self, name: str, launch: Launch, states: Mapping[str, StageState], now: float | None) -> Spending:
        book = self._books.setdefault(name, _StageBook(self._run / name))
        document = planned_stage(self._run / name, launch.started)
        return book.read(document, states[name], queued_since(launch, document, states), now)


def queued_since(launch: Launch, document: Mapping[str, Any], states: Mapping[str, StageState]) -> dict[int, float]:
    """Returns the moments from which attempts could have begun, by their numbers; of those of which that is known.

    On this machine stages take turns, and no stage waits for anything but a pause before another try.
    """
    attempts = states[document["name"]].attempts
    ends = [
        states[parent].attempts[-1].ended or 0.0
        for parent in document.get("after", ())
        if parent in states and states[parent].attempts
    ]
    since: dict[int, float] = {}
    first = document.get("earlier_attempts", 0)
    for at, attempt in enumerate(attempts):
        if at == first:
            since[attempt.number] = max([launch.started, *ends]) if attempt.launcher != "local" else attempt.started
        elif at > 0 and attempts[at - 1].decision.startswith("again"):  # else a person decided when to go on
            since[attempt.number] = attempts[at - 1].ended or attempt.started
    return since


class _StageBook:
    """One stage's part."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tail = Tail(folder / JOURNAL)
        self._tally, self._generation = Tally({}), 0
        self._made: tuple[str, Spending] | None = None  # what was found once nothing ran, and of what

    def read(
        self, document: Mapping[str, Any], state: StageState, since: Mapping[int, float], now: float | None
    ) -> Spending:
        still = all(attempt.ended is not None for attempt in state.attempts)
        key = self._key(document, state, since)
        if still and (kept := self._kept(key)) is not None:
            return kept
        tally = self._listen(state)
        parts = tuple(
            _attempt(attempt, document, tally, since.get(attempt.number), now, last=attempt is state.attempts[-1])
            for attempt in state.attempts
        )
        made = _total(str(document["name"]), parts)
        if still:
            self._keep(key, made)
        return made

    def _listen(self, state: StageState) -> Tally:
        starts = {attempt.number: attempt.started for attempt in state.attempts}
        self._tally.know(starts)
        for line in self._tail.lines():
            if self._tail.generation != self._generation:  # another file: what the one before said is void
                self._tally, self._generation = Tally(starts), self._tail.generation
            self._tally.take(line)
        return self._tally

    def _key(self, document: Mapping[str, Any], state: StageState, since: Mapping[int, float]) -> str:
        """Returns all that the answer depends on; a journal only grows."""
        try:
            size = (self._folder / JOURNAL).stat().st_size
        except OSError:
            size = 0
        attempts = [
            (one.number, one.started, one.ended, one.state, one.saved_step, one.nodes) for one in state.attempts
        ]
        asked = [document.get("steps"), document.get("resources"), document.get("outputs")]
        return json.dumps([_VERSION, size, attempts, sorted(since.items()), asked])

    def _kept(self, key: str) -> Spending | None:
        if self._made is not None and self._made[0] == key:
            return self._made[1]
        try:
            plain = json.loads((self._folder / KEPT).read_text(encoding="utf-8"))
            if plain["key"] != key:
                return None
            self._made = key, _reopened(plain["spending"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return self._made[1]

    def _keep(self, key: str, made: Spending) -> None:
        self._made = key, made
        with suppress(OSError):  # a folder that we may only look at, a full disk: it is added up again next time
            write_json(self._folder / KEPT, {"key": key, "spending": _closed(made)})


def _attempt(
    attempt: Attempt, document: Mapping[str, Any], tally: Tally, since: float | None, now: float | None, *, last: bool
) -> Spending:
    heard = tally.heard.get(attempt.number, Heard())
    seconds = dict.fromkeys(CLASSES, 0.0)
    seconds["queue"] = max(0.0, attempt.started - since) if since is not None else 0.0
    end = attempt.ended or heard.last or now or attempt.started
    total_s = max(0.0, end - attempt.started)
    silent = end if document.get("steps") is not None else attempt.started
    began = silent if heard.began is None else heard.began
    seconds["startup"] = min(total_s, max(0.0, began - attempt.started))
    left_s = total_s - seconds["startup"]
    if heard.began is None and attempt.state == "done" and document.get("steps") is not None:
        return _spent(attempt, document, heard, seconds | {"startup": 0.0, "unknown": total_s})
    if document.get("steps") is None:
        seconds[_work_of(attempt, document)] = left_s
    else:
        lost = attempt.saved_step if last and attempt.ended is not None and attempt.state != "done" else None
        busy_s, wait_s, lost_s = tally.kept(attempt.number, up_to=lost)
        found = {
            "productive": busy_s, "data_wait": wait_s, "redone": lost_s + heard.redone_s, "checkpoint": heard.saving_s,
        }  # fmt: skip
        told_s = sum(found.values())
        fit = min(1.0, left_s / told_s) if told_s > 0 else 0.0  # the clock of another host may be ahead
        seconds |= {name: fit * value for name, value in found.items()}
        seconds["idle"] = max(0.0, left_s - told_s)
    return _spent(attempt, document, heard, seconds)


def _work_of(attempt: Attempt, document: Mapping[str, Any]) -> str:
    if attempt.ended is not None and attempt.state != "done":
        return "unknown"
    kinds = {output["kind"] for output in document["outputs"].values()}
    return "evaluation" if kinds == {"report"} else "productive"


def _spent(attempt: Attempt, document: Mapping[str, Any], heard: Heard, seconds: Mapping[str, float]) -> Spending:
    asked = document.get("resources") or {}
    nodes = len(attempt.nodes) or int(asked.get("nodes") or 1)
    gpus = nodes * int(asked.get("gpus_per_node") or 0) if heard.gpus is None else heard.gpus
    devices = gpus or nodes * int(asked.get("tasks_per_node") or 1)
    hours = {name: value * devices / 3600 for name, value in seconds.items()}
    return Spending(name=str(attempt.number), unit="GPU" if gpus else "process", hours=hours, seconds=seconds)


def _total(name: str, parts: Sequence[Spending]) -> Spending:
    unit: Unit = "process" if all(part.unit == "process" for part in parts) else "GPU"
    counted = [part for part in parts if part.unit == unit]
    return Spending(
        name=name,
        unit=unit,
        hours={kind: sum(part.hours[kind] for part in counted) for kind in CLASSES},
        seconds={kind: sum(part.seconds[kind] for part in parts) for kind in CLASSES},
        parts=tuple(parts),
    )


def _closed(made: Spending) -> dict[str, Any]:
    return {
        "name": made.name, "unit": made.unit, "hours": dict(made.hours), "seconds": dict(made.seconds),
        "parts": [_closed(part) for part in made.parts],
    }  # fmt: skip


def _reopened(plain: Mapping[str, Any]) -> Spending:
    parts = tuple(_reopened(part) for part in plain["parts"])
    return Spending(**{**plain, "parts": parts})


def spending_or_none(run: Path) -> Spending | None:
    """Adds up a run folder for whoever can do without; None if it cannot be read."""
    try:
        return spending(run)
    except (OrchError, OSError, KeyError, TypeError, ValueError):
        return None
