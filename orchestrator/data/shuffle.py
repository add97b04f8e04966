"""A permutation of any size that is computed, not stored: place in, sample out."""

import hashlib

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]

_ROUNDS = 8
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # the finalizer of SplitMix64
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: neighbouring numbers end far apart
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_LONGEST = 2**62


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


def seeds_of(samples: Numbers, seed: int, source: str, epoch: int) -> Numbers:
    """Returns a seed below 2**63 for each sample, of its own in every epoch."""
    key = _keys(seed, source, epoch, purpose=b"sample", number=1)[0]
    return _mixed(_mixed(samples * _ODD + key) + key) >> np.uint64(1)


def _mixed(numbers: Numbers) -> Numbers:
    """Spreads every bit of a number over all of them; the arithmetic wraps at 64 bits, as it should."""
    numbers = (numbers ^ (numbers >> _SHIFTS[0])) * _MIX[0]
    numbers = (numbers ^ (numbers >> _SHIFTS[1])) * _MIX[1]
    return numbers ^ (numbers >> _SHIFTS[2])


def _keys(seed: int, source: str, epoch: int, *, purpose: bytes, number: int) -> Numbers:
    text = f"{seed}\n{epoch}\n{source}".encode()
    digest = hashlib.shake_128(purpose + b"\n" + text).digest(8 * number)
    return np.frombuffer(digest, "<u8").astype(np.uint64)
