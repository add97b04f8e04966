"""Tars behind URLs, read by ranges through fsspec. What fails is tried again with growing pauses, and then named."""

import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from orchestrator.data.cache import Cache
from orchestrator.data.places import LocalFile, Place, check_url, is_url
from orchestrator.errors import InputError
from orchestrator.records import record

log = logging.getLogger(__name__)

_LONGEST_WAIT_S = 10.0
_SILENCE_S = 60.0  # after which a connection counts as broken
_GONE = frozenset({404, 410})  # of the answers that say there is no such file
_WORTH_ANOTHER_TRY = frozenset({408, 425, 429})  # of the answers that blame the one who asks

T = TypeVar("T")


@record
class Remote:
    """How tars behind URLs are read. A cache belongs to one node; its processes share it."""

    cache_folder: str | None = None  # on a disk of each node, made where it is missing; null = no cache
    cache_bytes: int = 50 * 10**9
    piece_bytes: int = 8 * 2**20  # what is fetched at once into the cache: many samples, and no long wait for the first
    attempts: int = 6
    first_wait_s: float = 0.5  # doubled each time

    def __post_init__(self) -> None:
        """Refuses numbers with which nothing could be read."""
        if self.attempts < 1 or self.first_wait_s < 0:
            raise ValueError("attempts must be 1 or more, first_wait_s 0 or more")
        if self.piece_bytes < 1 or self.cache_bytes < 2 * self.piece_bytes:
            raise ValueError("cache_bytes must be at least two pieces (piece_bytes), and a piece 1 byte or more")


def open_place(tar: str, remote: Remote) -> Place:
    """Opens a tar: a path, or a URL."""
    if not is_url(tar):
        return LocalFile(tar)
    check_url(tar)
    if tar.startswith("file://"):
        return LocalFile(unquote(urlsplit(tar).path))
    far = RemoteFile(tar, remote)
    if remote.cache_folder is None:
        return far
    return CachedFile(far, Cache(Path(remote.cache_folder), remote.cache_bytes), remote.piece_bytes)


class RemoteFile:
    """A file behind a URL."""

    def __init__(self, url: str, remote: Remote) -> None:
        """Asks for the file's size; raises FileNotFoundError if there is none."""
        self.url = url
        self._remote = remote
        self._driver: tuple[int, Any, str] | None = None
        self._doubted: set[int] = set()
        self._size = self._stubborn(self._ask_size)

    def size(self) -> int:
        """Counts the bytes as of the opening."""
        return self._size

    def modified(self) -> float | None:
        """Returns when it was last written, in seconds since 1970; None where the driver does not say (plain http)."""
        system, path = self._reached()
        try:
            return float(self._stubborn(lambda: system.modified(path)).timestamp())
        except OSError:
            return None

    def read(self, offset: int, size: int) -> bytes:
        """Reads a range in one request."""
        wanted = max(min(size, self._size - offset), 0)
        return self._stubborn(lambda: self._range(offset, wanted)) if wanted else b""

    def fill(self, offset: int, into: memoryview) -> int:
        """Reads a range into memory."""
        found = self.read(offset, len(into))
        into[: len(found)] = found
        return len(found)

    def forget(self, offset: int, size: int) -> bool:  # noqa: ARG002  # nothing is copied
        """Has no copies, but the fault may have been one of the way: it says once that another try makes sense."""
        again = offset not in self._doubted
        self._doubted.add(offset)
        return again

    def close(self) -> None:
        """Has nothing open: connections belong to the driver."""

    def _ask_size(self) -> int:
        system, path = self._reached()
        try:
            size = system.info(path).get("size")
        except FileNotFoundError as error:
            raise _why_not_found(error) from None
        if size is None:
            raise _Hopeless(f"{self.url}: the server does not tell its size")
        return int(size)

    def _range(self, offset: int, size: int) -> bytes:
        system, path = self._reached()
        found: bytes = system.cat_file(path, start=offset, end=offset + size)
        if len(found) > size:
            raise _Hopeless(f"{self.url}: the server does not answer ranges: {len(found)} bytes instead of {size}")
        if len(found) < size:
            raise OSError(f"short read: {len(found)} of {size} bytes at {offset}")
        return found

    def _reached(self) -> tuple[Any, str]:
        """Returns the driver of the URL and the name it knows the file by; after a fork a new one."""
        if self._driver is None or self._driver[0] != os.getpid():
            self._driver = (os.getpid(), *driver(self.url))
        return self._driver[1], self._driver[2]

    def _stubborn(self, ask: Callable[[], T]) -> T:
        """Asks until there is an answer, or there have been enough attempts."""
        for attempt in range(1, self._remote.attempts + 1):
            try:
                return ask()
            except (FileNotFoundError, PermissionError, InputError):
                raise
            except Exception as error:  # drivers raise what they like: OSError, aiohttp's, botocore's
                told = f"{type(error).__name__}: {error}"
                if _is_hopeless(error):
                    raise OSError(f"{self.url}: {told}") from error
                if attempt == self._remote.attempts:
                    raise OSError(f"{self.url}: {attempt} attempts failed; the last: {told}") from error
                log.warning("%s: attempt %d of %d failed: %s", self.url, attempt, self._remote.attempts, told)
                self._pause(attempt)
        raise AssertionError("the loop returns or raises")

    def _pause(self, attempt: int) -> None:
        spread = 1 + os.getpid() % 8 / 8  # or all ranks would come back at the same moment
        time.sleep(min(self._remote.first_wait_s * 2 ** (attempt - 1), _LONGEST_WAIT_S) * spread)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the driver behind: it has threads and connections of its own."""
        return self.__dict__ | {"_driver": None}


class CachedFile:
    """A file behind a URL, of which pieces are kept on this node."""

    def __init__(self, far: RemoteFile, cache: Cache, piece_bytes: int) -> None:
        """Uses a cache that other files and other processes use too."""
        self._far = far
        self._cache = cache
        self._piece_bytes = piece_bytes
        self._name = hashlib.sha256(f"{far.url} {far.size()} {piece_bytes}".encode()).hexdigest()[:32]
        self._fetched_again: set[int] = set()

    def size(self) -> int:
        """Counts the bytes as of the opening."""
        return self._far.size()

    def modified(self) -> float | None:
        """Returns when it was last written, as its server says."""
        return self._far.modified()

    def read(self, offset: int, size: int) -> bytes:
        """Reads bytes from the cache, or from afar into it."""
        end = min(offset + size, self.size())
        parts = []
        while offset < end:
            number, within = divmod(offset, self._piece_bytes)
            some = min(end - offset, self._piece_bytes - within)
            parts.append(self._from_piece(number, within, some))
            offset += some
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def fill(self, offset: int, into: memoryview) -> int:
        """Reads bytes into memory."""
        found = self.read(offset, len(into))
        into[: len(found)] = found
        return len(found)

    def forget(self, offset: int, size: int) -> bool:
        """Throws pieces away that hold something wrong; False if they have been thrown away before."""
        pieces = set(range(offset // self._piece_bytes, (offset + size - 1) // self._piece_bytes + 1))
        wrong = pieces - self._fetched_again
        for number in wrong:
            log.warning("%s: piece %d in the cache is damaged: fetching it again", self._far.url, number)
            self._cache.drop(f"{self._name}-{number}")
        self._fetched_again |= wrong
        return bool(wrong)

    def close(self) -> None:
        """Closes the file; what is cached stays."""
        self._far.close()

    def _from_piece(self, number: int, within: int, size: int) -> bytes:
        start = number * self._piece_bytes
        length = min(self._piece_bytes, self.size() - start)
        return self._cache.read(f"{self._name}-{number}", length, within, size, lambda: self._far.read(start, length))


class _Hopeless(OSError):
    """A refusal that another attempt would not change."""


def driver(url: str) -> tuple[Any, str]:
    """Returns fsspec's driver for a URL and the name it knows it by."""
    import fsspec

    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
        options = {"client_kwargs": {"timeout": timeout}}
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url} cannot be read here: {error}") from error
    return system, path


def _why_not_found(error: FileNotFoundError) -> BaseException:
    """Returns what is behind it: to the driver of http, a server that is away or out of order has no files."""
    from aiohttp import ClientError, ClientResponseError

    cause = error.__cause__
    if isinstance(cause, ClientResponseError) and cause.status in _GONE:
        return error
    return cause if isinstance(cause, ClientError | TimeoutError) else error


def _is_hopeless(error: Exception) -> bool:
    if isinstance(error, _Hopeless | NotImplementedError | TypeError):
        return True
    from aiohttp import ClientResponseError

    if not isinstance(error, ClientResponseError):
        return False
    return 400 <= error.status < 500 and error.status not in _WORTH_ANOTHER_TRY
