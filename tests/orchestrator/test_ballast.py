"""Room that is kept for the last words, on a disk that is really full."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.ballast import PIECE_BYTES, Ballast
from tests.waiting import until

pytestmark = pytest.mark.needs("root")


def fill(disk: Path, name: str) -> int:
    """Takes all room there is; returns how many bytes that were."""
    taken = 0
    with (disk / name).open("wb", buffering=0) as file:
        try:
            while count := file.write(b"\0" * 65536):
                taken += count
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017 - any other error is a fault of the machine
    return taken


def words_on(disk: Path) -> Callable[[], str]:
    def write() -> str:
        (disk / "words").write_bytes(b"w" * PIECE_BYTES)
        return "written"

    return write


def test_what_must_be_written_is_written_on_a_full_disk(small_disk: Path) -> None:
    ballast = Ballast(small_disk / "ballast")
    fill(small_disk, "filler")

    assert ballast.insist(words_on(small_disk)) == "written"


def test_room_that_another_takes_at_once_was_not_all_there_was(small_disk: Path) -> None:
    ballast = Ballast(small_disk / "ballast")
    fill(small_disk, "filler")
    eaten: list[int] = []

    def write() -> str:
        if len(eaten) < 2:  # before the first try there is nothing to take, before the second what was given back
            eaten.append(fill(small_disk, f"greedy_{len(eaten)}"))
        return words_on(small_disk)()

    assert ballast.insist(write) == "written"
    assert eaten == [0, PIECE_BYTES]


def test_where_all_room_was_taken_it_waits_until_there_is_some(small_disk: Path) -> None:
    ballast = Ballast(small_disk / "ballast")
    ballast.drop()
    fill(small_disk, "filler")
    tries: list[int] = []

    def write() -> str:
        tries.append(1)
        return words_on(small_disk)()

    said: list[str] = []
    waiting = threading.Thread(target=lambda: said.append(ballast.insist(write)))
    waiting.start()
    until(lambda: len(tries) > 3)
    (small_disk / "filler").unlink()
    waiting.join(60)

    assert said == ["written"]


def test_an_error_that_room_does_not_mend_is_told_at_once(small_disk: Path) -> None:
    def write() -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(OSError, match="Read-only"):
        Ballast(small_disk / "ballast").insist(write)


def test_room_is_taken_again_and_given_back_whole(small_disk: Path) -> None:
    ballast = Ballast(small_disk / "ballast")
    ballast.drop()
    ballast.take()
    held = sum(path.stat().st_size for path in small_disk.glob("ballast*"))
    ballast.drop()

    assert held > PIECE_BYTES
    assert list(small_disk.glob("ballast*")) == []
