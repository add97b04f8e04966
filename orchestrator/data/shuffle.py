"""Permutations of any size that are computed, not stored: place in, sample out.

A full shuffle sends each read anywhere. A block shuffle keeps `block` neighbouring samples together, so that a store
that likes long reads is read block by block: the blocks are permuted, `window` blocks in a row of that order form a
window, and the samples of a window are permuted inside it. The samples that fill no block at the end of a source (at
most block - 1) join one of the windows, another one in each epoch. So every sample comes exactly once an epoch, and
to read on from any place takes at most `window` open blocks.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.rules import ShuffleRule

Numbers = NDArray[np.uint64]

_ROUNDS = 8
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # the finalizer of SplitMix64
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: neighbouring numbers end far apart
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_LONGEST = 2**62
_STRETCH = 2048  # places at a time: a few take nearly as long
_NOTHING = (-1, -1, -1), np.empty(0, np.uint64)


def shuffle_of(rule: ShuffleRule, size: int, seed: int, source: str, epoch: int) -> Callable[[Numbers], Numbers]:
    """Returns the permutation of 0 .. size-1 that a rule asks for, keyed by (seed, source, epoch)."""
    if rule.mode == "blocks":
        return BlockShuffle(size, rule.block, rule.window, seed, source, epoch)
    return Shuffle(size, seed, source, epoch) if rule.mode == "full" else np.copy


class Shuffled:
    """Samples of sources, epoch by epoch: found a stretch of places at a time, the latest of each source is kept."""

    def __init__(self, rule: ShuffleRule, seed: int) -> None:
        """Takes what is the same for all sources."""
        self._rule, self._seed = rule, seed
        self._kept: dict[str, tuple[tuple[int, int, int], Numbers]] = {}

    def samples(self, source: str, size: int, epoch: int, places: Numbers) -> Numbers:
        """Returns the samples of a source at these places of an epoch, as `shuffle_of` has them."""
        if source not in self._kept:  # a first batch does not wait for those after it
            self._kept[source] = _NOTHING
            return shuffle_of(self._rule, size, self._seed, source, epoch)(places)
        stretches, within = np.divmod(places, np.uint64(_STRETCH))
        found = np.empty_like(places)
        for number, here in by_value(stretches):
            found[here] = self._stretch(source, size, epoch, number)[within[here]]
        return found

    def _stretch(self, source: str, size: int, epoch: int, number: int) -> Numbers:
        which = size, epoch, number
        kept, samples = self._kept[source]
        if kept != which:
            places = np.arange(number * _STRETCH, min(size, (number + 1) * _STRETCH), dtype=np.uint64)
            samples = shuffle_of(self._rule, size, self._seed, source, epoch)(places)
            self._kept[source] = which, samples
        return samples


class BlockShuffle:
    """A permutation that goes through blocks of neighbours, `window` of them at a time; see the module's docstring."""

    def __init__(self, size: int, block: int, window: int, seed: int, source: str, epoch: int) -> None:
        """Prepares the permutation: a few hashes, whatever the size."""
        self._block, self._blocks, self._tail = block, size // block, size % block
        self._window = window
        self._seed, self._source, self._epoch = seed, source, epoch
        self._of_blocks = Shuffle(max(1, self._blocks), seed, f"{source}\nblocks", epoch)
        windows = max(1, -(-self._blocks // window))
        chance = Shuffle(windows, seed, f"{source}\ntail", epoch)
        self._joined = int(chance(np.zeros(1, np.uint64))[0])  # the window that takes the tail in
        self._tail_ends = min((self._joined + 1) * window, self._blocks) * block + self._tail

    def __call__(self, places: Numbers) -> Numbers:
        """Returns the sample at each place."""
        behind = places >= np.uint64(self._tail_ends)
        as_if_no_tail = places - np.where(behind, np.uint64(self._tail), np.uint64(0))
        windows = as_if_no_tail // np.uint64(self._window * self._block)
        windows[~behind] = np.minimum(windows[~behind], np.uint64(self._joined))
        found = np.empty_like(places)
        for window in np.unique(windows).tolist():
            here = windows == window
            found[here] = self._in_window(int(window), places[here])
        return found

    def _in_window(self, window: int, places: Numbers) -> Numbers:
        first = window * self._window
        blocks = min(self._window, self._blocks - first)
        start = first * self._block + (self._tail if window > self._joined else 0)
        size = blocks * self._block + (self._tail if window == self._joined else 0)
        mixed = Shuffle(size, self._seed, f"{self._source}\nwindow {window}", self._epoch)(places - np.uint64(start))
        slots, within = np.divmod(mixed, np.uint64(self._block))
        of_tail = slots >= blocks
        slots[of_tail] = 0
        numbers = self._of_blocks(slots + np.uint64(first)) * np.uint64(self._block) + within
        return np.where(of_tail, np.uint64(self._blocks * self._block) + within, numbers)


class Shuffle:
    """A pseudo-random permutation of 0 .. size-1, keyed by (seed, source, epoch).

    A Feistel network permutes the next larger power of two; a number that lands outside is sent through again until
    it lands inside (cycle walking), which takes less than two rounds through on average.
    """

    def __init__(self, size: int, seed: int, source: str, epoch: int) -> None:
        """Prepares the permutation: a few hashes, whatever the size."""
        if not 0 < size <= _LONGEST:
            raise ValueError(f"size must be from 1 to 2**62, not {size}")
        self._size = np.uint64(size)
        bits = max(2, (size - 1).bit_length())
        self._widths = (bits // 2, bits - bits // 2)
        self._keys = _keys(seed, source, epoch, purpose=b"shuffle", number=_ROUNDS)

    def __call__(self, places: Numbers) -> Numbers:
        """Returns the sample at each place."""
        found = self._network(places)
        while (outside := np.flatnonzero(found >= self._size)).size:
            found[outside] = self._network(found[outside])
        return found

    def _network(self, numbers: Numbers) -> Numbers:
        high, low = self._widths
        left, right = numbers >> np.uint64(low), numbers & np.uint64((1 << low) - 1)
        for key in self._keys:  # the halves swap sides, and with them their widths
            left, right = right, left ^ (_mixed(right * _ODD + key) & np.uint64((1 << high) - 1))
            high, low = low, high
        return (left << np.uint64(low)) | right


def by_value(values: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yields each value that occurs, in rising order, and where it does."""
    distinct = set(values.tolist())  # for the few of a micro-batch much faster than np.unique
    if len(distinct) == 1:
        yield distinct.pop(), np.arange(len(values))
        return
    for value in sorted(distinct):
        yield value, np.flatnonzero(values == value)


def seeds_of(samples: Numbers, seed: int, source: str, epoch: int) -> Numbers:
    """Returns a seed below 2**63 for each sample, of its own in every epoch."""
    key = _keys(seed, source, epoch, purpose=b"sample", number=1)[0]
    return _mixed(_mixed(samples * _ODD + key) + key) >> np.uint64(1)


def _mixed(numbers: Numbers) -> Numbers:
    """Spreads every bit of a number over all of them; the arithmetic wraps at 64 bits, as it should."""
    numbers = (numbers ^ (numbers >> _SHIFTS[0])) * _MIX[0]
    numbers = (numbers ^ (numbers >> _SHIFTS[1])) * _MIX[1]
    return numbers ^ (numbers >> _SHIFTS[2])


@lru_cache(64)
def _keys(seed: int, source: str, epoch: int, *, purpose: bytes, number: int) -> Numbers:
    text = f"{seed}\n{epoch}\n{source}".encode()
    digest = hashlib.shake_128(purpose + b"\n" + text).digest(8 * number)
    return np.frombuffer(digest, "<u8").astype(np.uint64)
