"""Whose turn it is: sources take turns in exact proportion to their weights, any turn is found by table.

Weights are fractions with a common denominator, the period; in a period each source has a whole number of turns. The
turns of one period are laid out once, so that no source is ever a whole turn away from its exact share: source i may
have its c-th turn (c = 0, 1, ...) at the first step k (1, 2, ...) with share * k >= c + e and must have it by the last
step with share * k <= c + 1 - e, where e = 1 / (2n - 2) for n sources. That this can always be met is Tijdeman's
theorem on the chairman assignment problem (1980); serving the earliest deadline first finds a way, as it always does
for tasks of unit length. So the error is at most 1 - e: half a turn for two sources, below one for any number.

A period is at most 2**20 turns long. Weights that need a longer one (0.123456789, or a temperature) are rounded to
shares of 2**20 by largest remainder: the rounded shares are kept exactly, and drift from those asked for by less than
one turn in 2**20, as long as no share is below 2**-20, which is rounded up. `error_bound` counts the drift in.

A source may have a cap on its turns. When it is reached, the others share its turns by their weights, in a schedule of
their own that begins there; where that is follows from the tables.
"""

import heapq
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import InputError

LONGEST_PERIOD = 2**20

Counts = NDArray[np.int64]


class Schedule:
    """Turns of sources in proportion to their weights, until their caps."""

    def __init__(self, weights: Mapping[str, float], caps: Mapping[str, int] | None = None) -> None:
        """Takes weights that are finite and not negative, at least one above 0, and the most turns, 1 or more, of some.

        The order of the mappings does not matter.
        """
        # through str: 0.1 is meant to be a tenth, not the binary number next to it
        exact = {name: Fraction(str(weight)) for name, weight in sorted(weights.items()) if weight > 0}
        self.names = tuple(exact)
        self._caps = {name: cap for name, cap in (caps or {}).items() if name in exact}
        self._phases = list(self._laid_out(exact))
        self._starts = np.array([phase.start for phase in self._phases], np.int64)
        self.end = self._end()

    def turns(self, steps: Counts) -> tuple[NDArray[np.int64], Counts]:
        """Returns who has the turn at each step, as places in `names`, and how many turns it had before."""
        self._refuse_beyond_end(int(steps.max(initial=-1)))
        who, before = np.empty(len(steps), np.int64), np.empty(len(steps), np.int64)
        of_phase = np.searchsorted(self._starts, steps, side="right") - 1
        for number in set(of_phase.tolist()):  # for the few of a micro-batch much faster than np.unique
            phase, here = self._phases[number], of_phase == number
            local, turns = phase.period.turns(steps[here] - phase.start)
            who[here], before[here] = phase.members[local], turns + phase.before[phase.members[local]]
        return who, before

    def turn(self, step: int) -> tuple[str, int]:
        """Returns who has the turn at a step, and how many turns it had before."""
        who, before = self.turns(np.array([step], np.int64))
        return self.names[int(who[0])], int(before[0])

    def counts(self, step: int) -> dict[str, int]:
        """Counts the turns of every source before a step."""
        self._refuse_beyond_end(step - 1)
        phase = self._phases[int(np.searchsorted(self._starts, step, side="right")) - 1]
        counts = phase.before.copy()
        counts[phase.members] += phase.period.counts(step - phase.start)
        return dict(zip(self.names, counts.tolist(), strict=True))

    def error_bound(self, steps: int = LONGEST_PERIOD) -> dict[str, float]:
        """Returns how many turns each source can be away from its exact share, at any step up to this one.

        The share is that of the turns since a source last reached its cap. The bound is the largest error that occurs.
        """
        bounds = np.zeros(len(self.names))
        for phase in self._phases:
            bounds[phase.members] = np.maximum(bounds[phase.members], phase.period.error_bound(steps))
        return dict(zip(self.names, bounds.tolist(), strict=True))

    def _laid_out(self, exact: Mapping[str, Fraction]) -> Iterator["_Phase"]:
        """Yields one schedule for each time between caps."""
        longest = LONGEST_PERIOD // (1 + len(self._caps))  # together the tables stay within what one may take
        before, start = np.zeros(len(self.names), np.int64), 0
        left = list(range(len(self.names)))
        while left:
            members = np.array(left, np.int64)
            phase = _Phase(start, members, before, _Period([exact[self.names[i]] for i in left], longest))
            yield phase
            lasts = self._lasts(phase)
            if lasts is None:
                return
            before = before.copy()
            before[members] += phase.period.counts(lasts)
            start += lasts
            left = [i for i in left if before[i] < self._caps.get(self.names[i], math.inf)]

    def _lasts(self, phase: "_Phase") -> int | None:
        """Counts the turns until a source reaches its cap; None if none ever does."""
        capped = [
            phase.period.step_of(local, self._caps[self.names[i]] - int(phase.before[i]) - 1) + 1
            for local, i in enumerate(phase.members.tolist())
            if self.names[i] in self._caps
        ]
        return min(capped, default=None)

    def _end(self) -> int | None:
        """Counts all turns there are; None = without end."""
        lasts = self._lasts(self._phases[-1])
        return None if lasts is None else self._phases[-1].start + lasts

    def _refuse_beyond_end(self, step: int) -> None:
        if self.end is not None and step >= self.end:
            raise InputError(f"turn {step} is asked for, but all sources have reached their caps after {self.end}")


class _Phase(NamedTuple):
    """A time in which the same sources take turns."""

    start: int
    members: Counts  # places in the schedule's names
    before: Counts  # turns that each source of the schedule had before it
    period: "_Period"


class _Period:
    """The turns of one period, by table: 10 bytes a turn."""

    def __init__(self, weights: list[Fraction], longest: int) -> None:
        total = sum(weights)
        self._shares = [weight / total for weight in weights]
        self._turns = np.array(_whole(self._shares, longest), np.int64)
        self._length = int(self._turns.sum())
        self._who = _earliest_deadline_first(self._turns)
        by_source = np.argsort(self._who, kind="stable").astype(np.uint32)
        self._steps = np.split(by_source, np.cumsum(self._turns)[:-1])  # of each source
        self._before = np.empty(self._length, np.uint32)
        for steps in self._steps:
            self._before[steps] = np.arange(len(steps), dtype=np.uint32)

    def turns(self, steps: Counts) -> tuple[NDArray[np.int64], Counts]:
        periods, within = np.divmod(steps, self._length)
        who = self._who[within].astype(np.int64)
        return who, periods * self._turns[who] + self._before[within]

    def counts(self, step: int) -> Counts:
        periods, within = divmod(step, self._length)
        return periods * self._turns + np.array([np.searchsorted(steps, within) for steps in self._steps], np.int64)

    def step_of(self, source: int, turn: int) -> int:
        """Finds the step at which a source has its turn number 0, 1, ..."""
        periods, within = divmod(turn, int(self._turns[source]))
        return periods * self._length + int(self._steps[source][within])

    def error_bound(self, steps: int) -> NDArray[np.float64]:
        found = []
        for turns, own, share in zip(self._turns.tolist(), self._steps, self._shares, strict=True):
            step, count = own.astype(np.int64), np.arange(turns, dtype=np.int64)
            behind = (step * turns - count * self._length).max(initial=0)  # just before a turn it lacks most
            ahead = ((count + 1) * self._length - (step + 1) * turns).max(initial=0)  # just after it, it has most
            drift = abs(share - Fraction(turns, self._length)) * steps
            found.append(float(Fraction(int(max(behind, ahead)), self._length) + drift))
        return np.array(found)


def _whole(shares: list[Fraction], longest: int) -> list[int]:
    """Turns shares into turns of a period: exactly if that is not too long, else rounded by largest remainder."""
    length = min(longest, math.lcm(*(share.denominator for share in shares)))
    turns = [max(1, int(share * length)) for share in shares]
    while sum(turns) < length:
        turns[max(range(len(turns)), key=lambda i: shares[i] * length - turns[i])] += 1
    while sum(turns) > length:  # as many as were rounded up from nothing
        turns[max(range(len(turns)), key=lambda i: turns[i])] -= 1
    return turns


def _earliest_deadline_first(turns: Counts) -> NDArray[np.uint16]:
    """Lays out the turns of a period as the docstring of this module says; returns whose each step is."""
    sources, length = len(turns), int(turns.sum())
    slack = max(1, 2 * sources - 2)  # 1 / e
    source = np.repeat(np.arange(sources), turns)
    count = np.concatenate([np.arange(own, dtype=np.int64) for own in turns.tolist()])
    own = turns[source]
    release = -((-(count * slack + 1) * length) // (own * slack))
    deadline = ((count + 1) * slack - 1) * length // (own * slack)
    by_release = np.argsort(release, kind="stable")
    jobs = (deadline * sources + source)[by_release].tolist()
    released = np.searchsorted(release[by_release], np.arange(1, length + 1), side="right").tolist()
    who, begin = np.empty(length, np.uint16), 0
    waiting: list[int] = []
    for step, end in enumerate(released):
        for job in jobs[begin:end]:
            heapq.heappush(waiting, job)
        begin = end
        who[step] = heapq.heappop(waiting) % sources
    return who
