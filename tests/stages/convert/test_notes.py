"""What becomes of a record that cannot be built: left out by name, or the end of the conversion."""

import errno
import json
import os
from collections.abc import Callable
from typing import NoReturn

import pytest

from orchestrator.errors import InputError, SurroundingsError
from stages.convert.raw import BrokenRecord, Notes


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def make() -> NoReturn:
        raise error

    return make


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BrokenRecord("box is empty", "[0, 0]"), "box is empty"),
        (InputError("no box"), "does not fit its image or caption"),
        (KeyError("regions"), "malformed record"),
        (ZeroDivisionError(), "malformed record"),
        (RecursionError(), "malformed record"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "a.jpg"), "file cannot be read"),
        (OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "a.jpg"), "file cannot be read"),
    ],
)
def test_a_broken_record_is_noted_with_its_reason(error: BaseException, reason: str) -> None:
    notes = Notes()

    assert notes.judged("data[7]", raising(error)) is None
    assert [(note["record"], note["reason"]) for note in notes.skipped] == [("data[7]", reason)]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_disk_that_goes_away_ends_the_conversion_instead_of_leaving_out_what_is_on_it(number: int) -> None:
    with pytest.raises(SurroundingsError, match=r"data\[7\].*a\.jpg"):
        Notes().judged("data[7]", raising(OSError(number, os.strerror(number), "a.jpg")))


def test_an_error_that_nobody_expected_carries_the_name_of_its_record() -> None:
    with pytest.raises(NotImplementedError) as caught:
        Notes().judged("data[7]", raising(NotImplementedError()))

    assert caught.value.__notes__ == ["while converting data[7]"]


def test_what_was_repaired_in_a_record_that_is_left_out_does_not_count() -> None:
    notes = Notes()

    def make(*, whole: bool) -> str:
        notes.repair("box cut to the image")
        if not whole:
            raise BrokenRecord("mask is empty", "")
        return "whole"

    assert [notes.judged("a", lambda: make(whole=True)), notes.judged("b", lambda: make(whole=False))] == [
        "whole",
        None,
    ]
    assert notes.repaired == {"box cut to the image": 1}


def test_notes_on_half_characters_and_endless_texts_can_be_written() -> None:
    notes = Notes()

    notes.skip("a\ud800", "reason", "x" * 1_000_000)

    written = json.dumps(notes.skipped[0], ensure_ascii=False).encode("utf-8")
    assert b"a\\\\ud800" in written
    assert len(written) < 5000
