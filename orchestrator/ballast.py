"""A little room on the disk that is kept for saying that the disk is full."""

import errno
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PIECES, PIECE_BYTES = 4, 64 << 10
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
WAIT_S, LONGEST_WAIT_S = 0.1, 10.0  # until somebody else has made room

T = TypeVar("T")

log = logging.getLogger(__name__)


class Ballast:
    """A few files that are thrown away one by one when the disk is full, so that there is room for saying so.

    One by one, as whoever filled the disk may be writing still, and takes what is given back before we can.
    """

    def __init__(self, path: Path, *, patience_s: float = math.inf) -> None:
        """Takes the room, if there is enough; the files are called `path` and a number.

        Where all of it was taken by others, `insist` waits for `patience_s` at most.
        """
        self._patience_s = patience_s
        self._pieces = [path.with_name(f"{path.name}_{number}") for number in range(1, PIECES + 1)]
        self.take()

    def take(self) -> None:
        """Takes the room, again if it was given back, if there is enough."""
        for piece in self._pieces:
            if not piece.exists():
                try:
                    piece.write_bytes(b"\0" * PIECE_BYTES)
                except OSError:
                    piece.unlink(missing_ok=True)
                    return

    def drop(self) -> None:
        """Gives all of the room back."""
        while self._drop_one():
            pass

    def insist(self, write: Callable[[], T]) -> T:
        """Writes; on a full disk with the room that was kept for it, and if that is gone, when there is room again.

        Raises:
            OSError: for another reason than a full disk, or it stayed full.
        """
        wait_s, deadline = WAIT_S, time.monotonic() + self._patience_s
        while True:
            try:
                return write()
            except OSError as error:
                if error.errno in FULL and self._drop_one():
                    continue
                if error.errno not in FULL or time.monotonic() > deadline:
                    raise
                log.warning("the disk is full, and so is the room that was kept on it: waiting (%s)", error)
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _drop_one(self) -> bool:
        piece = next((piece for piece in self._pieces if piece.exists()), None)
        if piece is not None:
            piece.unlink(missing_ok=True)
        return piece is not None
