"""How well samples are shuffled, against a full shuffle, and what reading them in that order costs."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.shuffle import Numbers
from orchestrator.records import record

_MOST_PLACES = 2**20


@record
class Quality:
    """What a shuffle does to samples that lie together; the values of a full shuffle of the same size beside it."""

    blocks_per_batch: float  # distinct blocks that the samples of a batch come from, on average: more is better
    blocks_per_batch_full: float
    rank_correlation: float  # of a sample's number with its place, without sign: 0 = none
    neighbour_correlation: float  # of the numbers of samples drawn one after the other, inside batches
    open_blocks: (
        float  # distinct blocks among 64 batches in a row, on average: what a cache has to hold; less is better
    )
    open_blocks_full: float

    @property
    def relative(self) -> float:
        """Compares the mixture inside batches with that of a full shuffle: 1.0 = as good."""
        return self.blocks_per_batch / self.blocks_per_batch_full


def measure_quality(shuffle: Callable[[Numbers], Numbers], size: int, *, block: int, batch: int) -> Quality:
    """Measures a permutation of 0 .. size-1; of a large one, stretches of 64 batches evenly over the whole."""
    batch = min(batch, size)
    stretch = min(size // batch, 64) * batch
    stretches = max(1, min(size // stretch, _MOST_PLACES // stretch))
    starts = np.linspace(0, size - stretch, stretches).astype(np.uint64)
    places: Numbers = np.add.outer(starts, np.arange(stretch, dtype=np.uint64))
    numbers = shuffle(places.ravel()).reshape(places.shape)
    batches = numbers.reshape(-1, batch)
    return Quality(
        blocks_per_batch=_distinct(batches // np.uint64(block)),
        blocks_per_batch_full=_expected(size, block, batch),
        rank_correlation=abs(_correlation(places, numbers)),
        neighbour_correlation=abs(_correlation(batches[:, :-1], batches[:, 1:])),
        open_blocks=_distinct(numbers // np.uint64(block)),
        open_blocks_full=_expected(size, block, stretch),
    )


def _distinct(rows: Numbers) -> float:
    """Counts the distinct values of each row, on average."""
    ordered = np.sort(rows, axis=1)
    return float(1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1).mean())


def _expected(size: int, block: int, drawn: int) -> float:
    """Returns how many distinct blocks so many samples come from that are drawn at random without repetition."""
    blocks, tail = divmod(size, block)
    return sum(count * (1 - _none_of(size, own, drawn)) for count, own in ((blocks, block), (min(tail, 1), tail)))


def _none_of(size: int, own: int, drawn: int) -> float:
    """Returns the chance that none of `own` samples is among `drawn` of `size`."""
    if own + drawn > size:
        return 0.0
    fewer, more = sorted((own, drawn))
    return float(np.exp(np.log1p(-more / (size - np.arange(fewer))).sum()))


def _correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    if one.size < 2:
        return 0.0
    return float(np.corrcoef(one.ravel().astype(np.float64), other.ravel().astype(np.float64))[0, 1])
