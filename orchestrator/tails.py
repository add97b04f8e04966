"""Reads a file that grows: each time only what was added since, in whole lines."""

import os
from collections.abc import Iterator
from pathlib import Path

BLOCK_BYTES = 1 << 20


class Tail:
    """Follows a file by its offset; one that was replaced or cut is read from its beginning again."""

    def __init__(self, path: Path, *, backlog_bytes: int | None = None) -> None:
        """Will begin with the last `backlog_bytes` of the file, or at its beginning; 0 = with what comes from now on.

        A line that was cut by beginning in its middle is left out.
        """
        self.path = path
        self.generation = 0  # goes up whenever what was read before does not count any more
        self._offset = 0
        self._file: int | None = None  # the inode that was read
        self._rest = b""
        if backlog_bytes is not None:
            self._begin_near_the_end(backlog_bytes)

    def lines(self) -> Iterator[bytes]:
        """Yields the whole lines that were added since the last call; nothing while there is no file.

        Raises OSError if the file is there and cannot be read.
        """
        try:
            file = self.path.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            return
        with file:
            self._recognize(file.fileno())
            file.seek(self._offset)
            while block := file.read(BLOCK_BYTES):
                self._offset += len(block)
                *whole, self._rest = (self._rest + block).split(b"\n")
                yield from whole

    def _recognize(self, fileno: int) -> None:
        facts = os.fstat(fileno)
        if self._file not in {None, facts.st_ino} or facts.st_size < self._offset:
            self._offset, self._rest = 0, b""
            self.generation += 1
        self._file = facts.st_ino

    def _begin_near_the_end(self, backlog_bytes: int) -> None:
        try:
            with self.path.open("rb") as file:
                start = max(0, file.seek(0, 2) - backlog_bytes)
                if start > 0:
                    file.seek(start - 1)  # a line that begins right there is whole
                    start += len(file.readline()) - 1
                self._offset = start
        except (FileNotFoundError, NotADirectoryError):
            return
