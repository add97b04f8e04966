"""Answers what a run is doing: from its folder, and from the launcher that knows what waits and what has vanished."""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError, OrchError
from orchestrator.launcher import Launcher, Place, Waiting
from orchestrator.lock import user_name
from orchestrator.planned import planned_stage
from orchestrator.progress import PROGRESS, read_progress
from orchestrator.records import record
from orchestrator.registration import promotion_of
from orchestrator.state import (
    LAUNCH,
    STATE,
    Launch,
    StageState,
    outputs_ready,
    read_launch,
    read_state,
    read_tracking,
)

REMOVED: Mapping[str, Any] = {"stage": "", "fingerprint": None, "outputs": {}}  # what is known of a stage without files
ASK_EVERY_S = 5.0  # a queue is asked by everybody; what the run folder says is read as often as one likes


@record
class Answer:
    """What a launcher said of a run, and when; or why it said nothing."""

    waiting: Mapping[str, Waiting] = field(default_factory=dict)
    time: float | None = None  # seconds since 1970; None = it never answered
    silence: str | None = None


class Observer:
    """Looks at a run again and again, and asks its launcher no more than once in a few seconds."""

    def __init__(self, directory: Path, place: Place, *, ask_every_s: float = ASK_EVERY_S) -> None:
        """Asks for the first time when it looks for the first time."""
        self.directory = directory
        self._place = place
        self._ask_every_s = ask_every_s
        self._answer = Answer()
        self._ask_at = 0.0

    def look(self) -> dict[str, Any]:
        """Returns what `orch status --json` prints (interface.md)."""
        self._ask()
        return read_status(self.directory, self._answer)

    def stage(self, name: str) -> dict[str, Any]:
        """Returns one stage's part of it; of a thousand stages, no other is read."""
        self._ask()
        return read_stage(self.directory, name, self._answer)

    def over(self) -> bool:
        """Tells whether nobody works on the run any more."""
        launch = read_launch(self.directory)
        return launch is None or launch.ended is not None

    def _ask(self) -> None:
        if time.monotonic() >= self._ask_at:
            self._answer = asked(self.directory, self._place, self._answer)
            self._ask_at = time.monotonic() + self._ask_every_s


def status(directory: Path, place: Place) -> dict[str, Any]:
    """Returns what `orch status --json` prints (interface.md), after the launcher has closed what ended unseen."""
    return Observer(directory, place).look()


def statuses(directories: Sequence[Path], place: Place) -> list[dict[str, Any]]:
    """Returns the status of many runs; a launcher that did not answer for one is not asked for the others."""
    silent: dict[str | None, str] = {}
    found = []
    for directory in directories:
        launch = read_launch(directory)
        name = None if launch is None or launch.ended is not None else launch.launcher
        known = read_status(directory, Answer(silence=silent[name])) if name in silent else status(directory, place)
        if known["silence"] is not None:
            silent[name] = known["silence"]
        found.append(known)
    return found


def read_stage(directory: Path, name: str, answer: Answer | None = None) -> dict[str, Any]:
    """Reads one stage's part of the status."""
    launch = read_launch(directory)
    entry = {} if launch is None else launch.action(name)
    if launch is None or not entry:
        names = () if launch is None else tuple(str(entry["name"]) for entry in launch.stages)
        raise InputError(f"{directory} has no stage {name!r}; it has {', '.join(names) or 'none'}")
    return stage_status(directory, launch, entry, (answer or Answer()).waiting.get(name))


def read_status(directory: Path, answer: Answer | None = None) -> dict[str, Any]:
    """Reads the status from the run folder, joined with what the launcher answered; changes and asks nothing."""
    answer = answer or Answer()
    launch = read_launch(directory)
    stages = [] if launch is None else [
        stage_status(directory, launch, entry, answer.waiting.get(entry["name"])) for entry in launch.stages
    ]  # fmt: skip
    return run_status(directory, launch, stages, answer)


def run_status(directory: Path, launch: Launch | None, stages: list[dict[str, Any]], answer: Answer) -> dict[str, Any]:
    """Puts the status of a run together from that of its stages."""
    tracking = read_tracking(directory)
    over = launch is not None and launch.ended is not None
    promotion = promotion_of(tracking)
    return {
        "run": str(directory),
        "recipe": directory.name if launch is None else launch.recipe,
        "state": _run_state(launch, [stage["state"] for stage in stages]),
        "launcher": None if launch is None else launch.launcher,
        "host": None if launch is None else launch.host,
        "pid": None if launch is None else launch.pid,
        "started": None if launch is None else launch.started,
        "ended": None if launch is None else launch.ended,
        "tracking_uri": None if launch is None else launch.tracking.get("uri"),
        "tracking_also": [] if launch is None else list(launch.tracking.get("also") or ()),
        "mlflow_run_id": tracking.get("mlflow_run_id"),
        "registered": None if promotion is None else asdict(promotion),
        "report": str(directory / "report.html") if (directory / "report.html").is_file() else None,
        "notes": [*(() if launch is None else launch.notes), *_stage_notes(stages)],
        "as_of": _last_written(directory, stages) if over or answer.time is None else answer.time,
        "silence": answer.silence,  # why the launcher does not answer; null = it does
        "goodput": _goodput(stages),
        "stages": stages,
    }


def _stage_notes(stages: list[dict[str, Any]]) -> Iterator[str]:
    """Yields what running or ended stages have to say, as of a rank that is slower than the others."""
    for stage in stages:
        yield from (f"{stage['name']}: {note}" for note in stage["progress"].get("notes", ()))


def cancel_run(directory: Path, launcher: Launcher, stage: str | None) -> str:
    """Asks whoever works on a run to stop, and says what happens now."""
    shown = status(directory, lambda _: launcher)
    if stage is not None:
        read_stage(directory, stage)
    if launcher.holder(directory) is None:
        return f"nothing to cancel: nobody works on {directory}, its state is {shown['state']}"
    return launcher.cancel(directory, stage, user_name())


def known_runs(runs: Path) -> list[Path]:
    """Lists the folders of runs, the latest launch first."""
    launches = [(read_launch(path.parent), path.parent) for path in runs.glob("*/launch.json")]
    known = [(launch.started, path) for launch, path in launches if launch is not None]
    return [path for _, path in sorted(known, reverse=True)]


def latest_run(runs: Path) -> Path:
    """Returns the folder of the run that was launched last."""
    known = known_runs(runs)
    if not known:
        raise InputError(f"there is no run in {runs.resolve()}; start one with: orch launch RECIPE")
    return known[0]


def asked(directory: Path, place: Place, before: Answer) -> Answer:
    """Asks the launcher; where it does not answer, what it said before is still the best there is."""
    launch = read_launch(directory)
    if launch is None or launch.ended is not None:
        return Answer()  # nothing is open: there is nothing to ask
    try:
        return Answer(waiting=place(directory).settle(directory), time=time.time())
    except (OrchError, OSError) as error:  # also a cluster file that another version of us wrote
        return Answer(waiting=before.waiting, time=before.time, silence=str(error))


def _last_written(directory: Path, stages: list[dict[str, Any]]) -> float | None:
    """Returns when the run folder last learned something: what is shown without an answer is as old as that."""
    places = [directory / LAUNCH]
    places += [directory / stage["name"] / name for stage in stages for name in (STATE, PROGRESS)]
    return max(_times(places), default=None)


def _times(paths: list[Path]) -> Iterator[float]:
    for path in paths:
        try:
            yield path.stat().st_mtime
        except OSError:
            continue


def _run_state(launch: Launch | None, states: list[str]) -> str:
    if launch is None:
        return "waiting"
    if launch.ended is None and "queued" in states and "running" not in states:
        return "queued"  # whatever has failed: something of this launch is still to come
    for state in ("running", "cancelled", "failed"):
        if state in states:
            return state
    if all(state in {"done", "reused"} for state in states):
        return "done"
    return "running" if launch.ended is None else "failed"


def stage_status(directory: Path, launch: Launch, entry: Mapping[str, Any], waiting: Waiting | None) -> dict[str, Any]:
    """Reads one stage's part of the status; `entry` is what the launch set out to do with it."""
    folder = directory / entry["name"]
    try:
        plain, removed = planned_stage(folder, launch.started), False
    except InputError:  # somebody took its folder away; the next launch makes it again
        plain, removed = REMOVED, True
    state, ready = read_state(folder), not removed and outputs_ready(plain)
    shown: str = state.state
    if ready and shown in {"waiting", "done"}:
        shown = "reused" if entry.get("action") == "reuse" else "done"
    elif not ready and shown == "done":
        shown = "waiting"  # its output was removed or changed by hand
    if waiting is not None and shown in {"waiting", "running", "failed"}:
        shown = "queued"
    progress = _current_progress(folder, state)
    counts_steps = progress.get("unit") == "step"
    steps = plain.get("steps") if plain.get("steps") is not None else (progress.get("total") if counts_steps else None)
    return {
        "name": entry["name"],
        "stage": plain["stage"],
        "state": shown,
        "reason": entry.get("reason", ""),
        "step": steps if shown in {"done", "reused"} else (progress.get("done") if counts_steps else None),
        "steps": steps,
        "eta_s": progress.get("eta_s") if shown == "running" else None,
        "progress": progress,
        "waiting": None if waiting is None or shown != "queued" else asdict(waiting),
        "fingerprint": plain["fingerprint"],
        "mlflow_run_id": read_tracking(folder).get("mlflow_run_id"),
        "outputs": {name: output["path"] for name, output in plain["outputs"].items()},
        "attempts": [{**asdict(attempt), "nodes": list(attempt.nodes)} for attempt in state.attempts],
    }


def _current_progress(folder: Path, state: StageState) -> dict[str, Any]:
    progress = read_progress(folder) or {}
    if state.attempts and progress.get("time", 0.0) < state.attempts[-1].started:
        return {}  # of an earlier attempt
    return progress


def _goodput(stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Compares the steps that were kept with the steps that were computed, over all attempts."""
    computed = lost = 0
    busy_s = 0.0
    for stage in stages:
        attempts: list[dict[str, Any]] = stage["attempts"]
        # another host's clock may be ahead of ours: no attempt lasts less than no time
        busy_s += sum(max(0.0, (attempt["ended"] or time.time()) - attempt["started"]) for attempt in attempts)
        steps = [
            (a["from_step"], a["to_step"]) for a in attempts if a["from_step"] is not None and a["to_step"] is not None
        ]
        computed += sum(to - since for since, to in steps)
        lost += sum(max(0, to - again) for (_, to), (again, _) in itertools.pairwise(steps))
    share = (computed - lost) / computed if computed else None
    return {"busy_s": round(busy_s, 1), "computed_steps": computed, "lost_steps": lost, "share": share}
