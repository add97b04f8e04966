"""Pieces of remote files on a disk of this node, shared by its processes, under a limit of bytes.

A piece is written under a draft's name and renamed when it is whole, so a killed process leaves nothing that is taken
for one. Of several processes that want a piece one fetches it, holding a lock that the kernel takes away from a dead
process. Room is taken before writing, in one counter for all processes; when there is too little, the pieces that were
not read for longest go. What the disk itself gets wrong is noticed by the checksums of the samples (see reader.py).
"""

import errno
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import SurroundingsError

log = logging.getLogger(__name__)

_LOCKS = 256
_PATIENCE_S = 60.0  # for another process that fetches the same piece
_DRAFTS_LIVE_S = 600.0
_KEPT_SHARE = 0.9  # of the limit, after making room: so that room need not be made for every piece
_COUNTER_BYTES = 8


class Cache:
    """A folder of pieces. Several may be open on one folder, in several processes, if their limits agree."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Opens or begins a cache."""
        self._pieces = folder / "pieces"
        self._locks = folder / "locks"
        self._room = folder / "room"
        self._limit = limit_bytes
        self._full = False
        try:
            self._pieces.mkdir(parents=True, exist_ok=True)
            self._locks.mkdir(exist_ok=True)
        except OSError as error:
            raise SurroundingsError(f"cannot keep a cache in {folder}: {error.strerror or error}") from error

    def read(self, name: str, length: int, offset: int, size: int, fetch: Callable[[], bytes]) -> bytes:
        """Reads `size` bytes of a piece that is `length` long; fetches it if it is not here."""
        found = self._from_disk(name, length, offset, size)
        if found is not None:
            return found
        with self._alone(name) as alone:
            if alone and (found := self._from_disk(name, length, offset, size)) is not None:
                return found  # somebody else fetched it meanwhile
            piece = fetch()
            if alone:
                self._keep(name, piece)
        return piece[offset : offset + size]

    def drop(self, name: str) -> None:
        """Throws a piece away."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._pieces / name

    def _from_disk(self, name: str, length: int, offset: int, size: int) -> bytes | None:
        try:
            file = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            if os.fstat(file).st_size != length:
                return None
            os.utime(file)  # read just now: among the last to go
            found = os.pread(file, size, offset)
        except OSError as error:  # the disk has a bad spot: another copy is made
            log.warning("%s cannot be read: %s", self._path(name), error)
            return None
        finally:
            os.close(file)
        return found if len(found) == size else None

    def _keep(self, name: str, piece: bytes) -> None:
        """Writes a piece. Without room or permission it is not kept, and reading goes on without."""
        draft = self._pieces / f".{name}.{os.getpid()}.draft"
        try:
            self._take_room(draft, len(piece))
            with draft.open("r+b") as file:  # not from empty: others count it by its size
                file.write(piece)
            with self._counting():  # or somebody who counts meanwhile may miss it under both names
                draft.replace(self._path(name))
        except OSError as error:
            if not self._full:
                log.warning("the cache in %s keeps nothing now: %s", self._pieces.parent, error)
            self._full = True
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        else:
            self._full = False

    def _take_room(self, draft: Path, size: int) -> None:
        """Counts a piece in before it is written, by a draft of its size, and makes room for it."""
        with self._counting() as counter:
            counter.seek(0)
            told = counter.read(_COUNTER_BYTES)
            used = int.from_bytes(told, "little") if len(told) == _COUNTER_BYTES else self._limit
            if used + size > self._limit:
                used = self._make_room(int(self._limit * _KEPT_SHARE) - size)
            if used + size > self._limit:
                raise OSError(errno.ENOSPC, f"{self._limit} bytes are in use")
            with draft.open("wb") as file:
                file.truncate(size)
            counter.truncate(0)
            counter.write((used + size).to_bytes(_COUNTER_BYTES, "little"))

    @contextmanager
    def _counting(self) -> Iterator[BinaryIO]:
        """Opens the count of bytes in use; nobody else counts, adds or names a piece meanwhile."""
        with self._room.open("a+b") as counter:
            fcntl.flock(counter, fcntl.LOCK_EX)
            yield counter

    def _make_room(self, target_bytes: int) -> int:
        """Deletes what was not read for longest until no more than a target is used, and returns what is used."""
        now, found = time.time(), []
        with os.scandir(self._pieces) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    about = entry.stat()
                    found.append((about.st_mtime, about.st_size, entry.path, entry.name.startswith(".")))
        used = sum(size for _, size, _, _ in found)
        for read_at, size, path, is_draft in sorted(found):
            if is_draft and now - read_at < _DRAFTS_LIVE_S:
                continue  # somebody is writing it
            if is_draft or used > max(target_bytes, 0):
                with suppress(FileNotFoundError):
                    Path(path).unlink()
                used -= size
        return used

    @contextmanager
    def _alone(self, name: str) -> Iterator[bool]:
        """Waits until nobody else on this node fetches the piece; False if that takes too long."""
        number = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % _LOCKS
        try:
            file = os.open(self._locks / f"{number:02x}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            log.warning("the cache in %s has no locks: %s", self._locks.parent, error)
            yield False
            return
        try:
            yield _locked(file)
        finally:
            os.close(file)


def _locked(file: int) -> bool:
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        else:
            return True
