"""Which samples make up which step: a pure function of (seed, sizes, weights, global batch, rules, step).

It is the only place that decides who sees what. Nothing is remembered and nothing replayed: any step is found by
arithmetic, so a run resumes at any step, on any number of ranks, and sees what it would have seen.

What takes turns is a step, so that all samples of a step come from one source and all ranks run the same modules, or
if the rules say so a sample. How often each source has its turn is exact (see `schedule.py`). Within a source epoch
follows epoch without a gap, each shuffled anew by a permutation that is computed, not stored (see `shuffle.py`): every
sample exactly once an epoch. With packing (see `packing.py`) what is shuffled and drawn is a unit of several samples.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from fractions import Fraction
from itertools import chain, repeat
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.mixture import caps_of, mixture_faults, weights_of
from orchestrator.data.packing import PackingPlan
from orchestrator.data.rules import OrderRules
from orchestrator.data.schedule import LONGEST_PERIOD, Schedule
from orchestrator.data.shuffle import Numbers, Shuffle, Shuffled, by_value, seeds_of
from orchestrator.errors import InputError

_PLAIN = OrderRules()
_CANDIDATES = 64


class Draw(NamedTuple):
    """A sample's turn."""

    source: str
    epoch: int  # how often the source was gone through before
    number: int  # of the sample within its source
    seed: int  # for everything random about this sample in this epoch; not negative, below 2**63
    place: int  # in the global batch; with packing, the samples of one packed sequence share a place


class Order:
    """The order in which the samples of some sources are drawn."""

    def __init__(
        self,
        seed: int,
        sizes: Mapping[str, int],
        weights: Mapping[str, float],
        global_batch: int,
        rules: OrderRules = _PLAIN,
        plans: Mapping[str, PackingPlan] | None = None,
    ) -> None:
        """Fixes the order: `sizes` are samples per source, `weights` relative shares of the turns (empty = equal).

        The order of the mappings does not matter. With packing, `plans` has the plan of every source, and the global
        batch is so many packs, or so many samples in buckets.
        """
        if faults := mixture_faults(sizes, weights, global_batch, rules):
            raise InputError("; ".join(f"{key}: {message}" for key, message in faults.items()))
        self._plans = _checked(plans or {}, sizes, rules)
        self._seed, self._sizes, self._global_batch, self._rules = seed, dict(sizes), global_batch, rules
        self._units = {name: len(self._plans[name]) if self._plans else size for name, size in sizes.items()}
        self._places = rules.bucket.size if rules.bucket else 1  # that a unit takes
        self._batch = global_batch // self._places  # in units
        self._per_turn = self._batch if rules.unit == "step" else 1
        self._weights = weights_of(self._units, weights, rules)
        self._caps = caps_of(self._units, rules, self._per_turn)
        for name in (name for name, cap in self._caps.items() if cap < 1):
            amount = f"{rules.max_epochs[name]:g} epochs of {self._units[name]} {self._what}"
            raise InputError(f"order.max_epochs.{name}: {amount} are less than the {self._per_turn} of one turn")
        self._schedule = Schedule(self._weights, self._caps)
        self._shuffled = Shuffled(rules.shuffle, seed)

    @property
    def _what(self) -> str:
        return "packs" if self._rules.pack else "buckets" if self._rules.bucket else "samples"

    @property
    def steps(self) -> int | None:
        """Counts the steps until every source has reached its max_epochs; None = without end."""
        end = self._schedule.end
        return end if end is None or self._rules.unit == "step" else end // self._batch

    def require(self, steps: int) -> None:
        """Refuses a mixture that is drawn out before so many steps."""
        if self.steps is None or self.steps >= steps:
            return
        caps = [
            f"{name}: {self._rules.max_epochs[name]:g} epochs of {self._units[name]} {self._what} are"
            f" {cap * self._per_turn} in {cap} {self._rules.unit}s"
            for name, cap in sorted(self._caps.items())
        ]
        raise InputError(
            f"max_epochs ends the data after {self.steps} steps of {self._batch} {self._what}, but {steps} steps are to"
            f" be trained ({'; '.join(caps)}); allowed: fewer steps, more epochs, or a source without max_epochs"
        )

    def source_of(self, step: int) -> str:
        """Tells which source all samples of a step come from; there is one only where steps take turns."""
        if self._rules.unit != "step":
            raise InputError("with unit: sample the samples of a step come from several sources")
        return self._schedule.turn(step)[0]

    def drawn_before(self, step: int) -> dict[str, int]:
        """Counts the samples drawn from each source before a step; for packs, as many as they hold on average."""
        counts = self._schedule.counts(step if self._rules.unit == "step" else step * self._batch)
        units = {name: count * self._per_turn for name, count in counts.items()}
        return {name: round(count * self._samples_per_unit(name)) for name, count in units.items()}

    def samples_of(self, step: int, part: range | None = None) -> list[Draw]:
        """Lists the global batch of a step by place, or a part of it; the world's size plays no role."""
        places = np.arange(self._global_batch) if part is None else np.arange(part.start, part.stop, part.step)
        units, within = np.divmod(places, self._places)
        drawn: list[list[Draw]] = []
        for source, epoch, here, found in self._found(step, units):
            numbers, of_place = self._members(source, found, within[here])
            seeds = seeds_of(numbers, self._seed, source, epoch)
            at = places[here[of_place]]
            drawn.append(list(map(Draw, repeat(source), repeat(epoch), numbers.tolist(), seeds.tolist(), at.tolist())))
        return drawn[0] if len(drawn) == 1 else sorted(chain.from_iterable(drawn), key=attrgetter("place"))

    def substitute(self, draw: Draw, attempt: int) -> Draw:
        """Returns the attempt-th stand-in (1, 2, ...) for a drawn sample that is damaged: another one of its source.

        It is a function of the draw and the seed, not of who asks. Other attempts are other samples, until all have
        had their turn. The stand-in keeps the epoch, the seed and the place of the original. With packing it is no
        longer than the original, so that the pack stays within its budget (see `PackingPlan.stand_in`).
        """
        others = self._sizes[draw.source] - 1
        if attempt < 1:
            raise ValueError(f"attempt must be 1 or more, not {attempt}")
        if others < 1:
            raise InputError(f"shards.{draw.source} holds one sample only, and that is damaged: there is no stand-in")
        plan = self._plans.get(draw.source)
        tried = 1 if plan is None else _CANDIDATES
        shuffle = Shuffle(others, self._seed, f"{draw.source}\nstand-in for {draw.number}", draw.epoch)
        ahead = shuffle(np.arange((attempt - 1) * tried, attempt * tried, dtype=np.uint64) % np.uint64(others))
        candidates = (ahead.astype(np.int64) + 1 + draw.number) % (others + 1)
        number = int(candidates[0]) if plan is None else plan.stand_in(draw.number, candidates, attempt)
        return draw._replace(number=number)

    def error_bound(self, steps: int = LONGEST_PERIOD) -> dict[str, float]:
        """Returns how many turns each source can be away from its exact share, at any turn up to this one."""
        return self._schedule.error_bound(steps)

    def digest(self) -> str:
        """Returns a digest of all that decides the order: equal digests, equal draws."""
        decides = {
            "seed": self._seed, "sizes": self._sizes, "global_batch": self._global_batch,
            "weights": {name: str(weight) for name, weight in self._weights.items()}, "rules": asdict(self._rules),
            "plans": {name: plan.digest for name, plan in self._plans.items()},
        }  # fmt: skip
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def _found(self, step: int, units: NDArray[np.int64]) -> "Iterator[_Found]":
        """Finds the units at these unit places of the global batch, by source and epoch."""
        if self._rules.unit == "step":
            source, turn = self._schedule.turn(step)
            who, positions = np.zeros(len(units), np.int64), turn * self._batch + units
            names: tuple[str, ...] = (source,)
        else:
            who, positions = self._schedule.turns(step * self._batch + units)
            names = self._schedule.names
        for one, own in by_value(who):
            source = names[one]
            size = self._units[source]
            epochs, within = np.divmod(positions[own], size)
            for epoch, now in by_value(epochs):
                at = within[now].astype(np.uint64)
                yield _Found(source, epoch, own[now], self._shuffled.samples(source, size, epoch, at))

    def _samples_per_unit(self, source: str) -> Fraction:
        return self._plans[source].samples_per_unit if self._plans else Fraction(1)

    def _members(self, source: str, units: Numbers, within: NDArray[np.int64]) -> tuple[Numbers, NDArray[np.int64]]:
        """Returns the samples of the units, and which of the given places each belongs to."""
        if not self._plans:
            return units, np.arange(len(units))
        plan, bucketed = self._plans[source], self._rules.bucket is not None
        members = [plan.members(int(unit)) for unit in units]
        if bucketed:
            members = [own[at : at + 1] for own, at in zip(members, within.tolist(), strict=True)]
        of_place = np.repeat(np.arange(len(units)), [len(own) for own in members])
        return np.concatenate(members).astype(np.uint64), of_place


def _checked(plans: Mapping[str, PackingPlan], sizes: Mapping[str, int], rules: OrderRules) -> dict[str, PackingPlan]:
    """Refuses plans that are not of these sources and rules: their units would be others than were measured."""
    rule = rules.units
    if plans.keys() != (sizes.keys() if rule else set()):
        raise ValueError(f"plans are needed of exactly {sorted(sizes) if rule else 'no source'}, not {sorted(plans)}")
    for name, plan in plans.items():
        if rule is None or plan.rule != asdict(rule) or len(plan.lengths.values) != sizes[name]:
            raise InputError(f"shards.{name}: its packing plan was made by another rule or of other samples")
    return dict(plans)


class _Found(NamedTuple):
    """Units of one source and epoch."""

    source: str
    epoch: int
    here: NDArray[np.int64]  # which of the places asked for they are at
    units: Numbers


def share(rank: int, world_size: int, micro_batch: int, global_batch: int) -> tuple[range, ...]:
    """Lists the places of the global batch that are a rank's, one range per micro-step.

    Micro-step by micro-step the ranks take neighbouring places; together they take each place once.
    """
    if not 0 <= rank < world_size:
        raise InputError(f"rank must be from 0 to {world_size - 1}, not {rank}")
    together = micro_batch * world_size
    if micro_batch < 1 or global_batch < 1 or global_batch % together:
        raise InputError(_batch_fault(micro_batch, world_size, global_batch))
    starts = range(rank * micro_batch, global_batch, together)
    return tuple(range(start, start + micro_batch) for start in starts)


def _batch_fault(micro_batch: int, world_size: int, global_batch: int) -> str:
    if micro_batch < 1 or global_batch < 1:
        return f"micro_batch and global_batch must be 1 or more, not {micro_batch} and {global_batch}"
    together = micro_batch * world_size
    below = global_batch // together * together
    multiples = [str(value) for value in (below, below + together) if value > 0]
    fitting = [value for value in range(1, global_batch + 1) if global_batch % (value * world_size) == 0][-8:]
    allowed = f"global_batch={' or '.join(multiples)}"
    if fitting:
        allowed += f", or micro_batch={' or '.join(str(value) for value in fitting)}"
    given = f"global_batch={global_batch}, micro_batch={micro_batch}, world_size={world_size}"
    return (
        f"global_batch must be a multiple of micro_batch x world_size = {together}; given: {given}; allowed: {allowed}"
    )
