"""Which samples make up which step: a pure function of (seed, sizes, weights, global batch, step).

It is the only place that decides who sees what. Nothing is remembered and nothing replayed: any step is found by
arithmetic, so a run resumes at any step, on any number of ranks, and sees what it would have seen.

All samples of a step come from one source, so that all ranks run the same modules. How often each source has its turn
is exact (see `schedule.py`). Within a source epoch follows epoch without a gap, each shuffled anew by a permutation
that is computed, not stored (see `shuffle.py`): every sample exactly once an epoch.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from orchestrator.data.schedule import Schedule
from orchestrator.data.shuffle import Shuffle, seeds_of
from orchestrator.errors import InputError


class Draw(NamedTuple):
    """A sample's turn."""

    source: str
    epoch: int  # how often the source was gone through before
    number: int  # of the sample within its source
    seed: int  # for everything random about this sample in this epoch; not negative, below 2**63
    place: int  # in the global batch; with packing, the samples of one packed sequence share a place


class Order:
    """The order in which the samples of some sources are drawn."""

    def __init__(self, seed: int, sizes: Mapping[str, int], weights: Mapping[str, float], global_batch: int) -> None:
        """Fixes the order: `sizes` are samples per source, `weights` relative shares of the steps (empty = equal).

        A source of weight 0 is never drawn. The order of the mappings does not matter.
        """
        _check(sizes, weights, global_batch)
        self._seed = seed
        self._sizes = dict(sizes)
        self._global_batch = global_batch
        self._schedule = Schedule({name: weights[name] for name in sizes} if weights else dict.fromkeys(sizes, 1.0))

    def source_of(self, step: int) -> str:
        """Tells which source all samples of a step come from."""
        return self._schedule.turn(step)[0]

    def drawn_before(self, step: int) -> dict[str, int]:
        """Counts the samples drawn from each source before a step."""
        counts = self._schedule.counts(step)
        return {name: counts.get(name, 0) * self._global_batch for name in self._sizes}

    def samples_of(self, step: int, part: range | None = None) -> list[Draw]:
        """Lists the global batch of a step, or the part of it at these places; the world's size plays no role."""
        source, turn = self._schedule.turn(step)
        size = self._sizes[source]
        places = range(self._global_batch) if part is None else part
        epochs: dict[int, list[int]] = {}
        for place in places:
            epoch, within = divmod(turn * self._global_batch + place, size)
            epochs.setdefault(epoch, []).append(within)
        draws: list[Draw] = []
        for epoch, within_epoch in epochs.items():
            numbers = Shuffle(size, self._seed, source, epoch)(np.array(within_epoch, np.uint64))
            seeds = seeds_of(numbers, self._seed, source, epoch)
            first = places[len(draws)]
            pairs = zip(numbers.tolist(), seeds.tolist(), range(first, first + len(within_epoch)), strict=True)
            draws += [Draw(source, epoch, number, seed, place) for number, seed, place in pairs]
        return draws

    def substitute(self, draw: Draw, attempt: int) -> Draw:
        """Returns the attempt-th stand-in (1, 2, ...) for a drawn sample that is damaged: another one of its source.

        It is a function of the draw and the seed, not of who asks. Other attempts are other samples, until all have
        had their turn. The stand-in keeps the epoch, the seed and the place of the original.
        """
        others = self._sizes[draw.source] - 1
        if attempt < 1:
            raise ValueError(f"attempt must be 1 or more, not {attempt}")
        if others < 1:
            raise InputError(f"shards.{draw.source} holds one sample only, and that is damaged: there is no stand-in")
        ahead = Shuffle(others, self._seed, f"{draw.source}\nstand-in for {draw.number}", draw.epoch)
        step = int(ahead(np.array([(attempt - 1) % others], np.uint64))[0]) + 1
        return draw._replace(number=(draw.number + step) % (others + 1))

    def error_bound(self) -> dict[str, float]:
        """Returns how many turns each source can be away from its exact share, at any step."""
        return self._schedule.error_bound()


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


def _check(sizes: Mapping[str, int], weights: Mapping[str, float], global_batch: int) -> None:
    if not sizes:
        raise InputError("shards: there is no source to draw from")
    if global_batch < 1:
        raise InputError(f"global_batch must be 1 or more, not {global_batch}")
    if weights and (wrong := sorted(set(sizes) ^ set(weights))):
        raise InputError(f"weights: {', '.join(wrong)}: must name exactly the sources {', '.join(sorted(sizes))}")
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"weights.{name} must be a finite number of 0 or more, not {weight}")
    if weights and not any(weights.values()):
        raise InputError("weights: at least one must be above 0")
    for name, size in sizes.items():
        if size < 1 and (not weights or weights[name] > 0):
            raise InputError(f"shards.{name} holds no samples; give it samples, or the weight 0")
