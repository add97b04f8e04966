"""Reads samples by number, one read of the disk each, and never hands out a wrong one."""

import errno
import logging
import resource
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path
from typing import Any, Self

from xxhash import xxh3_64_intdigest

from orchestrator.data.fitting import fit, load_index, misplaced, shown
from orchestrator.data.index import TarIndex, index_path
from orchestrator.data.listing import Promise, TarList
from orchestrator.data.places import ReadAhead
from orchestrator.data.remote import Remote, open_place
from orchestrator.data.scan import keep_freed_memory
from orchestrator.errors import DamagedArtifact, DamagedSample, InputError, SurroundingsError

log = logging.getLogger(__name__)

_MOST_TARS, _SHARE_OF_HANDLES = 256, 16  # a process may have many sets, and other things to open
_INDEX_BYTES = 64 * 2**20  # of all open indexes together
_OURS_TO_SOLVE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

Sample = tuple[str, dict[str, bytes]]


class ShardReader:
    """An open tar and its index. Not for two threads at once."""

    def __init__(
        self,
        tar: Path | str,
        index: Path | None = None,
        promise: Promise | None = None,
        remote: Remote | None = None,
        ahead: ReadAhead | None = None,
    ) -> None:
        """Opens a tar, a path or a URL; where its index is missing or wrong, one is made in memory."""
        self.tar = str(tar)
        self._promise = promise or Promise()
        self._doubted = False
        self._next = -1
        self._ahead = ahead or ReadAhead()
        loaded = load_index(index or index_path(Path(tar)))
        self._place = open_place(self.tar, remote or Remote())
        try:
            self.index, self._moved = fit(self._place, self.tar, loaded, self._promise)
        except BaseException:
            self._place.close()
            raise
        self.memory_bytes = len(self.index.body)
        keep_freed_memory()

    def read(self, number: int) -> Sample:
        """Reads a sample: its key, and its members by extension; raises DamagedSample if it is not whole."""
        try:
            key, rows = self.index.sample(number)
        except IndexError:
            raise self._not_there(number) from None
        if self._moved:
            rows = self._moved.get(number, rows)
        start, (offset, size, _, _) = rows[0][0], rows[-1]
        end = offset + size
        try:
            if number == self._next:  # one after the other: a larger piece at once
                start, piece = self._ahead.read(self._place, start, end)
            else:
                piece = self._place.read(start, end - start)
        except (OSError, OverflowError, MemoryError) as error:
            raise DamagedSample(self.tar, key, f"it cannot be read: {_told(error)}") from error
        self._next = number + 1
        found: dict[str, bytes] = {}
        extensions = self.index.extensions
        for offset, size, check, kind in rows:
            content = piece[offset - start : offset - start + size]
            if xxh3_64_intdigest(content) != check:
                return self._again(number, extensions[kind], offset, size, short=len(content) < size)
            found[extensions[kind]] = content
        return key, found

    def close(self) -> None:
        """Closes the tar."""
        self._place.close()

    def _not_there(self, number: int) -> Exception:
        promised = self._promise.samples
        if promised is None or not 0 <= number < promised:
            return IndexError(f"sample {number} of {len(self.index)} in {self.tar}")
        named = [key for key, _ in self.index.damage if key]  # the last numbers stand for what is lost, wherever it lay
        key = dict(enumerate(named)).get(number - len(self.index), "")
        return DamagedSample(self.tar, key, f"sample {number} of {promised} is not in it{shown(self.index.damage)}")

    def _again(self, number: int, extension: str, offset: int, size: int, *, short: bool) -> Sample:
        """Looks for the fault before giving a sample up: in a copy, in the index, or else in the tar."""
        key, rows = self.index.sample(number)
        begin, end = rows[0][0], rows[-1][0] + rows[-1][1]
        self._ahead.forget()
        try:
            if self._place.forget(begin, end - begin):
                return self.read(number)
            if not self._doubted and not self._moved and misplaced(self._place, self.index, number):
                self._doubted = True
                seen = len(self.index)  # whoever counted them may go on asking for them
                self.index, self._moved = fit(self._place, self.tar, self.index, self._promise, suspicious=True)
                if self._promise.samples is None:
                    self._promise = self._promise._replace(samples=seen)
                return self.read(number)
        except DamagedSample:
            raise
        except DamagedArtifact as error:
            raise DamagedSample(self.tar, "", f"sample {number}: {error}") from error
        except OSError as error:
            raise DamagedSample(self.tar, key, f"it cannot be read: {_told(error)}") from error
        why = "the tar is too short for them" if short else "their checksum does not hold"
        raise DamagedSample(self.tar, key, f"member {extension!r}: {size} bytes at {offset}: {why}")


class _LostTar:
    """A tar that cannot be opened, in the place of its reader."""

    def __init__(self, tar: str, index: TarIndex | None, reason: str) -> None:
        self._tar = tar
        self._index = index
        self._reason = reason
        self.memory_bytes = len(index.body) if index else 0

    def read(self, number: int) -> Sample:
        if self._index is None:
            raise DamagedSample(self._tar, "", f"sample {number}: {self._reason}")
        raise DamagedSample(self._tar, self._index.key(number), self._reason)

    def close(self) -> None:
        """Has nothing open."""


class ShardSet:
    """The samples of a Shards artifact, by number. Not for two threads at once."""

    def __init__(self, path: Path, *, open_tars: int | None = None, remote: Remote | None = None) -> None:
        """Opens a finished set; reads the manifest only, or if that has no counts the head of each index.

        At most `open_tars` tars are open at a time, by default a share of what the system allows this process.
        """
        if open_tars is not None and open_tars < 1:
            raise InputError(f"open_tars must be 1 or more, not {open_tars}")
        self.path = path
        self._tars = TarList(path)
        self._begins = [0, *self._tars.ends]  # the number of each tar's first sample; at its end that of all samples
        self._open_tars = open_tars or _handles()
        self._remote = remote or Remote()
        self._readers: OrderedDict[int, ShardReader | _LostTar] = OrderedDict()
        self._index_bytes = 0
        self._ahead = ReadAhead()

    def __len__(self) -> int:
        """Counts the samples."""
        return self._begins[-1]

    def read(self, number: int) -> Sample:
        """Reads a sample: its key, and its members by extension; raises DamagedSample if it is lost."""
        begins = self._begins
        if not 0 <= number < begins[-1]:
            raise IndexError(f"sample {number} of {len(self)} in {self.path}")
        tar = bisect_right(begins, number) - 1
        reader = self._readers.get(tar)
        if reader is None:
            reader = self._opened(tar)
        else:
            self._readers.move_to_end(tar)
        return reader.read(number - begins[tar])

    def locate(self, number: int) -> tuple[int, int]:
        """Returns in which tar a sample lies, and its number there."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)} in {self.path}")
        tar = bisect_right(self._begins, number) - 1
        return tar, number - self._begins[tar]

    def tar(self, number: int) -> str:
        """Returns where the tar of a sample lies: a path or a URL."""
        return self._tars.tar(self.locate(number)[0])

    def close(self) -> None:
        """Closes every open tar."""
        while self._readers:
            self._close_oldest()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes every open tar."""
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves open files behind: another process opens its own."""
        return self.__dict__ | {"_readers": OrderedDict(), "_index_bytes": 0}

    def _opened(self, tar: int) -> ShardReader | _LostTar:
        reader = self._open(tar)
        self._readers[tar] = reader
        self._index_bytes += reader.memory_bytes
        while len(self._readers) > self._open_tars or (self._index_bytes > _INDEX_BYTES and len(self._readers) > 1):
            self._close_oldest()
        return reader

    def _close_oldest(self) -> None:
        _, reader = self._readers.popitem(last=False)
        self._index_bytes -= reader.memory_bytes
        reader.close()

    def _open(self, tar: int) -> ShardReader | _LostTar:
        name, index = self._tars.tar(tar), self._tars.index(tar)
        try:
            return ShardReader(name, index, self._tars.promise(tar), self._remote, self._ahead)
        except FileNotFoundError:
            reason = f"its tar is in the manifest of {self.path}, but it is missing"
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and self._readers:
                self.close()  # somebody else has opened much: begin anew with one
                return self._open(tar)
            if error.errno in _OURS_TO_SOLVE:
                raise SurroundingsError(f"cannot read {name}: {_told(error)}") from error
            reason = f"its tar cannot be read: {_told(error)}"
        except DamagedArtifact as error:
            reason = str(error)
        log.warning("%s is lost: %s", name, reason)
        return _LostTar(name, self._promised(index, self._tars.promise(tar)), reason)

    @staticmethod
    def _promised(path: Path, promise: Promise) -> TarIndex | None:
        """Loads the index of a lost tar, to name its samples by; None if it is of another tar."""
        index = load_index(path)
        return index if index and (len(index), index.tar_bytes) == (promise.samples, promise.tar_bytes) else None


def _handles() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(_MOST_TARS, soft // _SHARE_OF_HANDLES)) if soft > 0 else _MOST_TARS


def _told(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
