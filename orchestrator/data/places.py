"""Where a tar lies: a file of this machine, or one behind a URL. Both are read at any offset."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self
from urllib.parse import urlsplit

from orchestrator.errors import InputError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_SCHEMES = ("https", "http", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "hdfs", "file", "memory")
_SECRET = re.compile(r"sign|sig=|token|key|cred|secret|passw", re.IGNORECASE)


class Place(Protocol):
    """Bytes that can be read at any offset. What cannot be read raises OSError."""

    def size(self) -> int:
        """Counts the bytes."""

    def modified(self) -> float | None:
        """Returns when it was last written, in seconds since 1970; None where nobody says."""

    def read(self, offset: int, size: int) -> bytes:
        """Reads bytes; fewer only where the place ends."""

    def fill(self, offset: int, into: memoryview) -> int:
        """Reads bytes into memory and counts them; fewer only where the place ends."""

    def forget(self, offset: int, size: int) -> bool:
        """Throws away copies of bytes that turned out to be wrong; False if there were none."""

    def close(self) -> None:
        """Gives back what is held open."""


class LocalFile:
    """A file of this machine, by `pread`: it may shrink or vanish while it is read, and nobody is killed by it."""

    def __init__(self, path: Path | str) -> None:
        """Opens the file."""
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def size(self) -> int:
        """Counts the bytes as of now."""
        return os.fstat(self._file).st_size

    def modified(self) -> float:
        """Returns when it was last written, in seconds since 1970."""
        return os.fstat(self._file).st_mtime

    def read(self, offset: int, size: int) -> bytes:
        """Reads bytes; fewer only at the end of the file."""
        found = os.pread(self._file, size, offset)
        while found and len(found) < size:
            more = os.pread(self._file, size - len(found), offset + len(found))
            if not more:
                break
            found += more
        return found

    def fill(self, offset: int, into: memoryview) -> int:
        """Reads bytes into memory; fewer only at the end of the file."""
        filled = 0
        while filled < len(into) and (more := os.preadv(self._file, (into[filled:],), offset + filled)):
            filled += more
        return filled

    def forget(self, offset: int, size: int) -> bool:  # noqa: ARG002  # nothing is copied
        """Has no copies."""
        return False

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self.close()


class ReadAhead:
    """A piece of a place in memory, for samples that are read one after the other. One is enough for many tars."""

    def __init__(self, size: int = 1 << 20) -> None:
        """Reads so much at once; no more, for that much stays in the processor's cache."""
        self._size = size
        self._of: Place | None = None
        self._start = self._end = 0
        self._piece = b""

    def read(self, place: Place, start: int, end: int) -> tuple[int, bytes]:
        """Returns bytes that hold those from start to end and more, and where they begin; fewer at the place's end."""
        if self._of is not place or not self._start <= start <= end <= self._end:
            self._of, self._piece = None, b""  # never two of them; and none, should the next line fail
            self._piece = self._more(place, start, end - start)
            self._of, self._start, self._end = place, start, start + len(self._piece)
        return self._start, self._piece

    def forget(self) -> None:
        """Reads anew what comes next."""
        self._of = None

    def _more(self, place: Place, start: int, size: int) -> bytes:
        if size < self._size:
            with suppress(OSError):  # what lies behind may be what cannot be read
                return place.read(start, self._size)
        return place.read(start, size)

    def __reduce__(self) -> tuple[type["ReadAhead"], tuple[int]]:
        """Leaves its piece behind: another process reads its own."""
        return type(self), (self._size,)


def is_url(tar: str) -> bool:
    """Tells whether a tar is named by a URL; anything else is a path."""
    return _URL.match(tar) is not None


def check_url(url: str) -> None:
    """Refuses URLs that we do not read, or that would put a secret into a manifest."""
    scheme = url.partition("://")[0]
    if scheme not in _SCHEMES or "::" in url:
        raise InputError(f"{url}: {scheme}:// is not read; allowed: {', '.join(_SCHEMES)}")
    parts = urlsplit(url)
    if parts.password or (parts.username and scheme in ("http", "https")) or _SECRET.search(parts.query):
        bare = f"{scheme}://{parts.hostname}{parts.path}"
        raise InputError(
            f"{bare}: the URL holds a secret, which would be written into a manifest; "
            "give it to the environment of the driver instead (AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, ~/.netrc)"
        )
