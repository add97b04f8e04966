"""What the process that measures found out about a model and its micro-batches; plain data, no torch."""

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.records import record


@record
class Line:
    """An amount that grows with the samples of a micro-batch."""

    fixed: float
    per_sample: float

    def at(self, samples: int) -> float:
        """Returns the amount for so many samples."""
        return self.fixed + self.per_sample * samples


@record
class Anatomy:
    """Sizes of a model, and the bytes alive beside its weights while a micro-batch is computed."""

    numels: tuple[int, ...]  # of each parameter
    parts: tuple[str, ...]  # the part of the model that it belongs to
    groups: tuple[int, ...]  # the optimizer's group that it is in; -1 = frozen
    moments: tuple[int, ...]  # bytes an element that its optimizer remembers of it
    buffers: Mapping[str, int]  # part -> bytes
    uses: tuple[tuple[int, ...], ...]  # parameters that each module call needs, forward and then backward, in order
    released: tuple[Line, ...]  # bytes alive at the moments that can be the highest; gradients go as they come
    kept: tuple[Line, ...]  # the same, where gradients stay
    at_peak: Mapping[str, Line]  # part -> bytes alive at the highest moment, by where they were made
    flops: Line  # of a forward and backward pass, recomputed activations included

    def highest(self, samples: int, *, gradients_stay: bool) -> float:
        """Returns the most bytes alive beside the weights while a micro-batch of so many samples is computed."""
        return max(line.at(samples) for line in (self.kept if gradients_stay else self.released))

    def elements(self, *, learning: bool = False) -> int:
        """Counts the elements of all parameters, or of those that learn."""
        return sum(n for n, group in zip(self.numels, self.groups, strict=True) if group >= 0 or not learning)

    def to_plain(self) -> dict[str, Any]:
        """Returns JSON-ready data."""
        return {
            "numels": self.numels, "parts": self.parts, "groups": self.groups, "moments": self.moments,
            "buffers": dict(self.buffers), "uses": self.uses,
            "released": _pairs(self.released), "kept": _pairs(self.kept),
            "at_peak": {part: [line.fixed, line.per_sample] for part, line in self.at_peak.items()},
            "flops": [self.flops.fixed, self.flops.per_sample],
        }  # fmt: skip

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Anatomy":
        """Rebuilds what `to_plain` gave; KeyError, TypeError or ValueError if it is something else."""
        return cls(
            numels=tuple(plain["numels"]), parts=tuple(plain["parts"]), groups=tuple(plain["groups"]),
            moments=tuple(plain["moments"]),
            buffers=dict(plain["buffers"]), uses=tuple(tuple(use) for use in plain["uses"]),
            released=_lines(plain["released"]), kept=_lines(plain["kept"]),
            at_peak={part: _line(pair) for part, pair in plain["at_peak"].items()}, flops=_line(plain["flops"]),
        )  # fmt: skip


def envelope(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Keeps the lines that are the highest for some number of samples from 1 on."""
    best: dict[float, float] = {}
    for line in lines:
        best[line.per_sample] = max(line.fixed, best.get(line.per_sample, float("-inf")))
    hull: list[Line] = []
    for per_sample in sorted(best):
        line = Line(fixed=best[per_sample], per_sample=per_sample)
        while hull and line.at(1) >= hull[-1].at(1):  # steeper, and not lower from the start
            hull.pop()
        while len(hull) > 1 and _meet(hull[-2], line) <= _meet(hull[-2], hull[-1]):
            hull.pop()
        hull.append(line)
    return tuple(hull)


def _meet(first: Line, second: Line) -> float:
    """Returns the number of samples at which the steeper second line reaches the first."""
    return (first.fixed - second.fixed) / (second.per_sample - first.per_sample)


def _pairs(lines: Iterable[Line]) -> list[list[float]]:
    return [[line.fixed, line.per_sample] for line in lines]


def _line(pair: Any) -> Line:
    fixed, per_sample = pair
    return Line(fixed=float(fixed), per_sample=float(per_sample))


def _lines(pairs: Any) -> tuple[Line, ...]:
    return tuple(_line(pair) for pair in pairs)
