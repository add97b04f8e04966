"""Joins the files of a tar to samples, and tells which of them are whole beyond doubt.

A sample is a run of files with one key, as webdataset groups them. What may be half a sample, or two merged, is no
sample but a damage: next to a broken header or the cut end of a tar, a sample counts as whole only if it has the same
members as every sample that is beyond doubt.
"""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from orchestrator.data.scan import Files, Gap

_KEY_AND_EXTENSION = re.compile(rb"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)  # as webdataset splits names
_META = re.compile(rb"__[^/]*__($|/)")  # as webdataset skips them
_KEY, _DOT = itemgetter(0), itemgetter(1)
_RARE = 100  # one sample in so many may lack what the others have, before that counts as usual


class Damage(NamedTuple):
    """A loss: what is missing from a tar, and why."""

    key: str  # empty where even the key is lost
    reason: str


class Samples(NamedTuple):
    """The samples of a tar, as columns."""

    keys: list[bytes]
    firsts: npt.NDArray[np.uint64]  # the number of each sample's first member; at its end that of all members
    members: npt.NDArray[np.uint64]  # one row a member: offset, size, checksum, number of its extension
    extensions: list[str]
    damage: list[Damage]


def group(found: Iterable[Files | Gap], *, alike: bool) -> Samples:
    """Joins files to samples; if they are `alike`, one that lacks what nearly all others have is half a sample."""
    groups = _Groups()
    for item in found:
        if isinstance(item, Gap):
            groups.interrupt(f"{item.reason} (byte {item.offset})")
        else:
            groups.add(item)
    return groups.whole(alike=alike)


class _Groups:
    """Runs of files with one key, never across a gap."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._firsts: list[int] = []
        self._columns = Files([], [], [], [])  # its names are those of the files that belong to samples
        self._kinds: list[int] = []
        self._extensions: dict[bytes, int] = {}
        self._numbers: dict[str, int] = {}
        self._doubts: dict[int, str] = {}
        self._damage: list[Damage] = []
        self._open: bytes | None = None  # the key of the run that the next file may belong to
        self._doubt = ""  # about the next run to begin

    def add(self, files: Files) -> None:
        """Adds files that follow each other."""
        joined = b"\n".join(files.names)
        if b"/" in joined or b"\n__" in joined or joined.startswith(b"__"):
            split = [_split(name) for name in files.names]
        else:
            split = [name.partition(b".") for name in files.names]
        if not all(map(_KEY, split)) or not all(map(_DOT, split)):  # neither key nor sample
            kept = [at for at, (key, dot, _) in enumerate(split) if key and dot]
            split = [split[at] for at in kept]
            names, *numbers = files
            files = Files([names[at] for at in kept], *([column[at] for at in kept] for column in numbers))
        for column, more in zip(self._columns[1:], files[1:], strict=True):
            column.extend(more)
        keys, firsts, kinds, extensions, current = self._keys, self._firsts, self._kinds, self._extensions, self._open
        for key, _, extension in split:
            if key != current:
                current = key
                if self._doubt:
                    self._doubts[len(keys)], self._doubt = self._doubt, ""
                keys.append(key)
                firsts.append(len(kinds))
            kinds.append(extensions[extension] if extension in extensions else self._number_of(extension))
        self._open = current

    def interrupt(self, doubt: str) -> None:
        """Ends a run at a gap: it and the next may be halves."""
        self._damage.append(Damage("", doubt))
        if self._open is not None:
            self._doubts[len(self._keys) - 1] = doubt
        self._open, self._doubt = None, doubt

    def whole(self, *, alike: bool) -> Samples:
        """Keeps the runs that are whole samples beyond doubt, and names the rest."""
        firsts = [*self._firsts, len(self._kinds)]
        kinds = tuple(self._kinds)
        shapes = [kinds[begin:end] for begin, end in pairwise(firsts)]
        lost = self._mixed_up(shapes)
        certain = {shape for row, shape in enumerate(shapes) if row not in self._doubts and row not in lost}
        sure = {frozenset(shape) for shape in certain}
        for row, doubt in self._doubts.items():
            if row not in lost and sure != {frozenset(shapes[row])}:
                has = ", ".join(sorted(self._names()[kind] for kind in shapes[row]))
                lost[row] = f"may be half a sample ({has}): {doubt}"
        if alike:
            self._lacking(shapes, lost)
        damage = self._damage + [Damage(_text(self._keys[row]), reason) for row, reason in sorted(lost.items())]
        return self._without(lost, firsts, damage)

    def _number_of(self, extension: bytes) -> int:
        number = self._numbers.setdefault(_text(extension).lower(), len(self._numbers))
        self._extensions[extension] = number
        return number

    def _names(self) -> list[str]:
        return list(self._numbers)

    def _mixed_up(self, shapes: list[tuple[int, ...]]) -> dict[int, str]:
        """Finds the runs that share a key, or hold a member twice."""
        names = self._names()
        twice = {shape: names[kind] for shape in set(shapes) for kind in shape if shape.count(kind) > 1}
        lost = {row: f"member {twice[shape]!r} is there twice" for row, shape in enumerate(shapes) if shape in twice}
        if len(set(self._keys)) < len(self._keys):
            times = Counter(self._keys)
            for row, key in enumerate(self._keys):
                if times[key] > 1:
                    lost[row] = f"the key appears {times[key]} times: members may be mixed up"
        return lost

    def _lacking(self, shapes: list[tuple[int, ...]], lost: dict[int, str]) -> None:
        """Finds the samples that lack a member which nearly all others have."""
        kept = Counter(shape for row, shape in enumerate(shapes) if row not in lost)
        total, names = kept.total(), self._names()
        if total <= 2 or len(kept) == 1:
            return
        have = Counter(kind for shape, times in kept.items() for kind in shape for _ in range(times))
        usual = {kind for kind, times in have.items() if 0 < total - times <= max(1, total // _RARE)}
        for row, shape in enumerate(shapes):
            if row not in lost and (missing := usual.difference(shape)):
                lost[row] = f"lacks {', '.join(sorted(names[kind] for kind in missing))}, which the others have"

    def _without(self, lost: dict[int, str], firsts: list[int], damage: list[Damage]) -> Samples:
        _, offsets, sizes, checks = self._columns
        members = np.array([offsets, sizes, checks, self._kinds], np.uint64).T
        begins = np.array(firsts, np.uint64)
        keys = self._keys
        if lost:
            keep = np.ones(len(keys), bool)
            keep[list(lost)] = False
            counts = np.diff(begins)
            members = members[np.repeat(keep, counts.astype(np.int64))]
            begins = np.concatenate([np.zeros(1, np.uint64), np.cumsum(counts[keep])])
            keys = [key for key, kept in zip(keys, keep, strict=True) if kept]
        return Samples(keys, begins, members, self._names(), damage)


def _split(name: bytes) -> tuple[bytes, bytes, bytes]:
    """Splits a name as bytes.partition does a plain one; without key and dot where it belongs to no sample."""
    match = None if _META.match(name) else _KEY_AND_EXTENSION.fullmatch(name)
    return (match[1], b".", match[2]) if match else (b"", b"", b"")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
