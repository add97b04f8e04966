"""A little room on the disk that is kept for saying that the disk is full."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

BALLAST_BYTES = 256 << 10

T = TypeVar("T")


class Ballast:
    """A file that is thrown away when the disk is full, so that there is room for saying so."""

    def __init__(self, path: Path) -> None:
        """Takes the room, if there is enough."""
        self._path = path
        self.take()

    def take(self) -> None:
        """Takes the room, again if it was given back, if there is enough."""
        try:
            if not self._path.exists():
                self._path.write_bytes(b"\0" * BALLAST_BYTES)
        except OSError:
            self.drop()

    def drop(self) -> None:
        """Gives the room back."""
        self._path.unlink(missing_ok=True)

    def insist(self, write: Callable[[], T]) -> T:
        """Writes, on a full disk with the room that was kept for it."""
        try:
            return write()
        except OSError:
            self.drop()
            return write()
