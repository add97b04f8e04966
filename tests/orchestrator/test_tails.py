"""Reading a file that grows: every whole line once, whatever happens to the file."""

from pathlib import Path

import pytest

from orchestrator import tails
from orchestrator.tails import Tail


def test_every_whole_line_comes_once(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    tail = Tail(path)
    nothing = list(tail.lines())
    path.write_bytes(b"one\ntw")
    first = list(tail.lines())
    with path.open("ab") as file:
        file.write(b"o\nthree\n")

    assert (nothing, first, list(tail.lines()), list(tail.lines())) == ([], [b"one"], [b"two", b"three"], [])


@pytest.mark.parametrize(("backlog", "expected"), [(100, [b"one", b"two"]), (7, [b"two"]), (4, [b"two"]), (0, [])])
def test_it_may_begin_near_the_end_and_never_inside_a_line(tmp_path: Path, backlog: int, expected: list[bytes]) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"one\ntwo\n")
    tail = Tail(path, backlog_bytes=backlog)
    first = list(tail.lines())
    with path.open("ab") as file:
        file.write(b"three\n")

    assert (first, list(tail.lines())) == (expected, [b"three"])


def test_lines_longer_than_a_block_come_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "BLOCK_BYTES", 4)
    path = tmp_path / "journal"
    path.write_bytes(b"0123456789\nab\n")

    assert list(Tail(path).lines()) == [b"0123456789", b"ab"]


@pytest.mark.parametrize("how", ["replaced", "cut"])
def test_a_file_that_is_another_one_is_read_from_its_beginning(tmp_path: Path, how: str) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"one\ntwo\n")
    tail = Tail(path)
    list(tail.lines())
    if how == "replaced":
        (tmp_path / "other").write_bytes(b"three\nfour\nfive\n")
        (tmp_path / "other").rename(path)
    else:
        path.write_bytes(b"six\n")

    assert next(tail.lines()) in {b"three", b"six"}
    assert tail.generation == 1


def test_a_file_that_vanishes_says_nothing_until_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"one\n")
    tail = Tail(path)
    list(tail.lines())
    moved = path.rename(tmp_path / "aside")
    gone = list(tail.lines())
    moved.rename(path)
    with path.open("ab") as file:
        file.write(b"two\n")

    assert (gone, list(tail.lines()), tail.generation) == ([], [b"two"], 0)
