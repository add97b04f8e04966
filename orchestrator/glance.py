"""What the watch view shows of a run, kept up to date by reading only what has changed since the last look."""

import json
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from orchestrator.goodput import Spending
from orchestrator.journal import JOURNAL
from orchestrator.progress import PROGRESS
from orchestrator.records import record
from orchestrator.state import STATE, Launch, read_launch
from orchestrator.status import Answer, run_status, stage_status
from orchestrator.tails import Tail
from orchestrator.vigil import ALERTS

BACKLOG_BYTES = 1 << 20  # of a journal that is read to begin with: thousands of log lines
MOST_POINTS = 512  # of a curve; a longer one is thinned out
# of a thousand stages most wait or have ended: whether that has changed is asked in turns, but of the next few
LOOKS_A_TURN, NEXT_FEW = 10, 16
MOST_WARNINGS = 50
WORTH_SAYING = ("straggler", "damage", "left_out", "unsaved", "slow_saves", "saves_in_foreground", "verdict")
READ = tuple(f'{{"event": "{name}"'.encode() for name in ("metrics", *WORTH_SAYING))

Place = tuple[int, int, int] | None  # inode, size and time of a file: while they stay, so does what it says


class Series:
    """A curve of bounded size: where it has too many points, each two become one."""

    def __init__(self) -> None:
        """Has no point yet."""
        self.points: list[float] = []
        self.last: float | None = None
        self._each = 1  # numbers that make a point
        self._part: list[float] = []

    def add(self, value: float) -> None:
        """Adds the next number; one that is not finite counts as the last one only."""
        self.last = value
        if not math.isfinite(value):
            return
        self._part.append(value)
        if len(self._part) < self._each:
            return
        self.points.append(sum(self._part) / len(self._part))
        self._part = []
        if len(self.points) >= 2 * MOST_POINTS:
            self.points = [(one + two) / 2 for one, two in zip(self.points[::2], self.points[1::2], strict=True)]
            self._each *= 2


@record
class Warned:
    """Something that somebody who watches should see."""

    time: float
    stage: str
    text: str


@record
class Picture:
    """All that is shown at a moment."""

    status: Mapping[str, Any]
    series: Mapping[str, Mapping[str, Series]] = field(default_factory=dict)  # stage -> metric -> curve
    warnings: tuple[Warned, ...] = ()  # the last ones, oldest first
    spending: Spending | None = None


class Glance:
    """Looks at one run again and again."""

    def __init__(self, directory: Path) -> None:
        """Reads nothing yet."""
        self._directory = directory
        self._launch: Launch | None = None
        self._launch_place: Place = None
        self._stages: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._journals: dict[str, _Journal] = {}  # of what runs
        self._past: deque[Warned] = deque(maxlen=MOST_WARNINGS)  # of what ran
        self._looks, self._waiting = 0, 0  # so far; stages that wait, in this look

    def look(self, answer: Answer, spending: Spending | None = None) -> Picture:
        """Returns what is to be seen now; raises FileNotFoundError if the folder is gone, OSError if it is away."""
        launch, self._looks = self._read_launch(), self._looks + 1
        self._waiting = 0
        stages = [self._stage(launch, at, entry, answer) for at, entry in enumerate(launch.stages)]
        self._listen({stage["name"] for stage in stages if stage["state"] == "running"})
        live = (one for journal in self._journals.values() for one in journal.warnings)
        warnings = sorted([*self._past, *live], key=_when)
        return Picture(
            status=run_status(self._directory, launch, stages, answer),
            series={name: journal.series for name, journal in self._journals.items()},
            warnings=tuple(warnings[-MOST_WARNINGS:]),
            spending=spending,
        )

    def _read_launch(self) -> Launch:
        path = self._directory / "launch.json"
        place = _place(path)
        if place is None:
            raise FileNotFoundError(f"{path} is gone")
        if self._launch is None or place != self._launch_place:
            read = read_launch(self._directory)
            if read is None:
                raise FileNotFoundError(f"{path} cannot be read")
            if self._launch is None or read.started != self._launch.started:
                self._stages.clear()
            self._launch, self._launch_place = read, place
        return self._launch

    def _listen(self, running: set[str]) -> None:
        for name in running | self._journals.keys():
            self._journals.setdefault(name, _Journal(self._directory / name)).read()
            if name not in running:  # that was its last word
                self._past.extend(self._journals.pop(name).warnings)

    def _stage(self, launch: Launch, at: int, entry: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
        name = str(entry["name"])
        waiting, known = answer.waiting.get(name), self._stages.get(name)
        if known is not None and waiting is None and not self._is_due(at, known[1]["state"]):
            return known[1]
        folder = f"{self._directory}/{name}/"
        signature = (_place(folder + STATE), _place(folder + PROGRESS), waiting)
        if known is None or known[0] != signature:
            known = self._stages[name] = (signature, stage_status(self._directory, launch, entry, waiting))
        return known[1]

    def _is_due(self, at: int, state: str) -> bool:
        if state in {"running", "queued"} or at % LOOKS_A_TURN == self._looks % LOOKS_A_TURN:
            return True
        self._waiting += state == "waiting"
        return state == "waiting" and self._waiting <= NEXT_FEW


class _Journal:
    """The curves and warnings of one stage."""

    def __init__(self, folder: Path) -> None:
        self._stage = folder.name
        self._journal = Tail(folder / JOURNAL, backlog_bytes=BACKLOG_BYTES)
        self._alerts = Tail(folder / ALERTS, backlog_bytes=BACKLOG_BYTES)
        self._generation = 0
        self.series: dict[str, Series] = {}
        self.warnings: deque[Warned] = deque(maxlen=MOST_WARNINGS)

    def read(self) -> None:
        for line in self._journal.lines():
            if self._journal.generation != self._generation:
                self._generation, self.series = self._journal.generation, {}
                self.warnings.clear()
            if line.startswith(READ):
                self._take(line)
        for line in self._alerts.lines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            if event.get("event") == "metrics":
                for name, value in event["values"].items():
                    if isinstance(value, int | float):
                        self.series.setdefault(name, Series()).add(float(value))
                return
            self.warnings.extend(
                Warned(time=float(event["time"]), stage=self._stage, text=text) for text in _in_words(event)
            )
        except (ValueError, KeyError, TypeError, AttributeError):  # cut short by whoever was killed
            return


def _in_words(event: Mapping[str, Any]) -> Iterator[str]:
    kind = event.get("event", "alert")
    if kind == "alert" and event.get("state") == "begun":
        yield f"alert: {event['text']}"
    elif kind == "straggler":
        yield (
            f"step {event['step']}: rank {event['rank']} ({event['node']}) needs {event['times']:.1f} times the median"
        )
    elif kind == "damage":
        yield f"step {event['step']}: {event['lost']} samples were lost, and have stand-ins"
    elif kind == "left_out":
        yield f"{event['why']}; the step is left out ({event['policy']})"
    elif kind == "unsaved":
        yield f"step {event['step']} was not saved: there was no time for it"
    elif kind == "slow_saves":
        yield f"step {event['step']}: training waited {event['waited_s']:.1f} s for the save of step {event['before']}"
    elif kind == "saves_in_foreground":
        yield f"training stands still for each save: {event['reason']}"
    elif kind == "verdict" and event.get("state") != "done":
        yield f"attempt {event['attempt']} {event['state']} ({event['cause']}): {event['detail']}"


def _when(warned: Warned) -> float:
    return warned.time


def _place(path: Path | str) -> Place:
    try:
        facts = os.stat(path)  # noqa: PTH116 - of a thousand stages, many times a minute
    except (FileNotFoundError, NotADirectoryError):
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns
