"""Adds up, event by event, what a stage's journal says of where the time of its attempts went. No torch.

All intervals lie between two events of one attempt, hence on one clock. What it reads:

    {"event": "attempt", "number", "gpus"}   every rank has joined: what an attempt does begins
    {"event": "begun", "step"}               a training has loaded its model and goes on behind this step; again where
                                             it has gone back to a checkpoint
    {"event": "left_out", "step"}            a step was computed in vain: it would have done harm
    {"event": "loss", "step", "data_wait_s"} a step is done; also "save_wait_s", until what it changes was copied
    {"event": "metrics", "step", "values"}   the same, for stages without `loss`; values.data_wait_s is how long a step
                                             waited for data on the slowest rank, since the last line or save
    {"event": "stood_still", "seconds"}      training stood still for a checkpoint after the last step
"""

import json
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = b'{"event": "'
# a million of these lines is no rarity: they are read without making an object of each
LOSS = re.compile(
    rb'\{"event": "loss", "time": ([\d.]+), "step": (\d+), [^{}]*?"data_wait_s": ([\d.e-]+)'
    rb'(?:, "save_wait_s": ([\d.e-]+))?\}'
)
READ = frozenset({b"attempt", b"begun", b"left_out", b"loss", b"metrics", b"stood_still"})


@dataclass
class Heard:
    """What the journal says of one attempt, in seconds."""

    began: float | None = None  # seconds since 1970: when what comes before the first step was over
    last: float | None = None  # of the last event that was added up
    gpus: int | None = None
    saving_s: float = 0.0
    redone_s: float = 0.0  # steps that were computed again later, or in vain
    begun: bool = False  # a training; another beginning has gone back


class Tally:
    """What one journal says; feed it the lines in order."""

    def __init__(self, starts: Mapping[int, float]) -> None:
        """Knows when each attempt began: for journals that do not say which attempt writes."""
        self.heard: dict[int, Heard] = {}
        self._starts = dict(starts)
        self._number: int | None = None  # of the attempt that writes; None where no event has said so
        self._has_losses = False  # else every `metrics` event of a new step is one
        # the steps that count, in order: one that is computed again takes the place of all from it on
        self._steps, self._numbers = array("q"), array("q")
        self._busy_s, self._wait_s = array("d"), array("d")
        self._window = 0  # steps since the last log line or save

    def know(self, starts: Mapping[int, float]) -> None:
        """Learns of attempts that have begun since."""
        self._starts |= starts

    def take(self, line: bytes) -> None:
        """Adds a line of the journal; one that was cut short, or of another kind, says nothing."""
        if match := LOSS.fullmatch(line):
            time, step, wait_s, saving_s = match.groups()
            self._has_losses = True
            self._step(float(time), int(step), self._writer(float(time)), float(wait_s), float(saving_s or 0))
            return
        if not line.startswith(PREFIX) or line[len(PREFIX) : line.find(b'"', len(PREFIX))] not in READ:
            return
        try:
            event = json.loads(line)
            self._take(event, float(event["time"]))
        except (ValueError, KeyError, TypeError):
            return

    def kept(self, number: int, *, up_to: int | None = None) -> tuple[float, float, float]:
        """Returns the seconds an attempt spent on steps that count: computing, waiting for data; and on later ones.

        Steps after `up_to` are those that will have to be computed again.
        """
        start, end = bisect_left(self._numbers, number), bisect_right(self._numbers, number)
        until = end if up_to is None else bisect_right(self._steps, up_to, start, end)
        busy_s, wait_s = sum(self._busy_s[start:until]), sum(self._wait_s[start:until])
        return busy_s, wait_s, sum(self._busy_s[until:end]) + sum(self._wait_s[until:end])

    def _take(self, event: Mapping[str, Any], time: float) -> None:
        kind = event["event"]
        if kind == "attempt":
            self._number, self._window = int(event["number"]), 0
            gpus = event.get("gpus")
            self.heard[self._number] = Heard(began=time, last=time, gpus=None if gpus is None else int(gpus))
            return
        number = self._writer(time)
        heard = self._heard(number)
        if kind == "begun" and not heard.begun:
            heard.began, heard.last, heard.begun = time, time, True
            self._take_back(int(event["step"]) + 1)
        elif kind in {"begun", "left_out"}:
            heard.redone_s += max(0.0, time - (heard.last or time))
            heard.last = time
            self._take_back(int(event["step"]) + (kind == "begun"))
        elif kind == "stood_still":
            self._take_save(float(event["seconds"]), time, heard)
        else:
            self._take_step(event, time, number)

    def _take_step(self, event: Mapping[str, Any], time: float, number: int) -> None:
        step, has_loss = int(event["step"]), event["event"] == "loss"
        values = event.get("values") or {}
        self._has_losses |= has_loss
        again = bool(self._steps) and (self._steps[-1], self._numbers[-1]) == (step, number)
        if has_loss or not (self._has_losses or again):
            wait_s, saving_s = event.get("data_wait_s") or 0.0, event.get("save_wait_s") or 0.0
            self._step(time, step, number, float(wait_s), float(saving_s))
        if "data_wait_s" in values:
            self._correct(float(values["data_wait_s"]))
        if not has_loss:
            self._window = 0

    def _step(self, time: float, step: int, number: int, wait_s: float, saving_s: float) -> None:
        if self._steps and self._steps[-1] >= step:
            self._take_back(step)
        heard = self._heard(number)
        took_s = max(0.0, time - heard.last) if heard.last is not None else 0.0
        if saving_s > 0:
            heard.saving_s += min(took_s, saving_s)
            took_s -= min(took_s, saving_s)
        wait_s = min(took_s, wait_s)
        self._steps.append(step)
        self._numbers.append(number)
        self._busy_s.append(took_s - wait_s)
        self._wait_s.append(wait_s)
        self._window += 1
        heard.began, heard.last = heard.began or time, time

    def _take_save(self, seconds: float, time: float, heard: Heard) -> None:
        since_s = max(0.0, time - heard.last) if heard.last is not None else 0.0
        saving_s = min(since_s, max(0.0, seconds))
        heard.saving_s += saving_s
        if self._steps:
            self._busy_s[-1] += since_s - saving_s  # between the step and its save
        heard.last, self._window = time, 0

    def _take_back(self, step: int) -> None:
        """Steps from this one on are computed again: what they had cost is lost."""
        while self._steps and self._steps[-1] >= step:
            self._steps.pop()
            self.heard[self._numbers.pop()].redone_s += self._busy_s.pop() + self._wait_s.pop()

    def _correct(self, wait_s: float) -> None:
        """Counts the wait of the rank that waited longest: the others, and the first too, wait for it in a step."""
        window = range(len(self._steps) - min(self._window, len(self._steps)), len(self._steps))
        if wait_s * len(window) <= sum(self._wait_s[at] for at in window):
            return
        for at in window:
            took_s = self._busy_s[at] + self._wait_s[at]
            self._wait_s[at] = min(took_s, wait_s)
            self._busy_s[at] = took_s - self._wait_s[at]

    def _heard(self, number: int) -> Heard:
        if number not in self.heard:
            self.heard[number] = Heard()
        return self.heard[number]

    def _writer(self, time: float) -> int:
        """Returns the attempt that wrote an event: as the journal says, else by the clock."""
        if self._number is not None:
            return self._number
        begun = [number for number, start in self._starts.items() if start <= time]
        return max(begun, default=min(self._starts, default=1))
