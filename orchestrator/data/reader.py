"""Reads samples by number, one read of the disk each, and never hands out a wrong one."""

import logging
import os
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.artifacts import Shards
from orchestrator.data.index import TarIndex, build_index, count_samples, index_path
from orchestrator.errors import DamagedArtifact, InputError, SurroundingsError

log = logging.getLogger(__name__)

_OPEN_TARS = 64


class ShardReader:
    """An open tar and its index."""

    def __init__(self, tar: Path) -> None:
        """Opens a tar; where it has no index beside it, one is built in memory."""
        self.tar = tar
        self.index = _index_of(tar)
        self._file = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, number: int) -> tuple[str, dict[str, bytes]]:
        """Reads a sample: its key, and its members by extension."""
        members = self.index.members(number)
        begin, last = members[0].offset, members[-1]
        block = os.pread(self._file, last.offset + last.size - begin, begin)
        found: dict[str, bytes] = {}
        for extension, offset, size, check in members:
            content = block[offset - begin : offset - begin + size]
            if len(content) != size:
                raise self._damaged(number, extension, f"{size} bytes at {offset}: the tar is too short for them")
            if zlib.crc32(content) != check:
                raise self._damaged(number, extension, f"{size} bytes at {offset}: their checksum does not hold")
            found[extension] = content
        return self.index.key(number), found

    def close(self) -> None:
        """Closes the tar."""
        os.close(self._file)

    def _damaged(self, number: int, extension: str, reason: str) -> DamagedArtifact:
        return DamagedArtifact(f"{self.tar}: sample {self.index.key(number)!r}: member {extension!r}: {reason}")


class ShardSet:
    """The samples of a Shards artifact, by number."""

    def __init__(self, path: Path, *, open_tars: int = _OPEN_TARS) -> None:
        """Opens a finished set; reads the manifest only, or if that has no counts the head of each index.

        At most `open_tars` tars are open at a time, at two file descriptors each: the tar's and the index's.
        """
        if open_tars < 1:
            raise InputError(f"open_tars must be 1 or more, not {open_tars}")
        self.path = path
        shards = Shards(path)
        facts = shards.facts()
        manifest = shards.manifest() or {}
        if manifest["kind"] != Shards.kind:
            raise InputError(f"{path} holds {manifest['kind']}, not shards")
        self._tars = tuple(
            _inside(path, entry["path"]) for entry in manifest["files"] if entry["path"].endswith(".tar")
        )
        self._counts = _counts(self._tars, facts)
        self._ends = list(accumulate(self._counts))
        self._open_tars = open_tars
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()

    def __len__(self) -> int:
        """Counts the samples."""
        return self._ends[-1] if self._ends else 0

    def read(self, number: int) -> tuple[str, dict[str, bytes]]:
        """Reads a sample: its key, and its members by extension."""
        tar, local = self.locate(number)
        return self._reader(tar).read(local)

    def locate(self, number: int) -> tuple[int, int]:
        """Returns in which tar a sample lies, and its number there."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)} in {self.path}")
        tar = bisect_right(self._ends, number)
        return tar, number - (self._ends[tar] - self._counts[tar])

    def tar(self, number: int) -> Path:
        """Names the tar a sample lies in."""
        return self._tars[self.locate(number)[0]]

    def close(self) -> None:
        """Closes every open tar."""
        while self._readers:
            self._readers.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves open files behind: another process opens its own."""
        return self.__dict__ | {"_readers": OrderedDict()}

    def _reader(self, tar: int) -> ShardReader:
        reader = self._readers.get(tar)
        if reader is not None:
            self._readers.move_to_end(tar)
            return reader
        try:
            reader = ShardReader(self._tars[tar])
        except FileNotFoundError as error:
            raise DamagedArtifact(f"{self._tars[tar]} is in the manifest of {self.path}, but it is missing") from error
        except OSError as error:
            raise SurroundingsError(f"cannot read {self._tars[tar]}: {error.strerror or error}") from error
        if len(reader.index) != self._counts[tar]:
            reader.close()
            found = f"{len(reader.index)} whole samples, its manifest says {self._counts[tar]}"
            raise DamagedArtifact(f"{reader.tar} has {found}{_named(reader.index)}")
        self._readers[tar] = reader
        if len(self._readers) > self._open_tars:
            self._readers.popitem(last=False)[1].close()
        return reader


def _index_of(tar: Path) -> TarIndex:
    path = index_path(tar)
    try:
        return TarIndex.load(path)
    except FileNotFoundError:
        log.warning("%s has no index beside it: walking through it", tar)
        return build_index(tar)


def _inside(folder: Path, relative: str) -> Path:
    parts = PurePosixPath(relative)
    if parts.is_absolute() or ".." in parts.parts:
        raise DamagedArtifact(f"the manifest of {folder} names a file outside of it: {relative}")
    return folder / parts


def _counts(tars: Sequence[Path], facts: dict[str, Any]) -> list[int]:
    """Takes the samples per tar from the manifest, or else from the indexes."""
    counts = facts.get("samples_per_tar")
    if isinstance(counts, list) and len(counts) == len(tars) and all(type(count) is int for count in counts):
        return counts
    return [count_samples(index_path(tar)) if index_path(tar).is_file() else len(build_index(tar)) for tar in tars]


def _named(index: TarIndex) -> str:
    return "".join(f"; {key or 'unknown key'}: {reason}" for key, reason in index.damage[:3])
