"""Where expressions stand in a caption: ignoring case, without sharing a character."""

import pytest

from stages.convert.grand_f import spans_of


@pytest.mark.parametrize(
    ("caption", "phrases", "expected"),
    [
        ("The dog sees a cat.", ["the dog", "a cat"], ["The dog", "a cat"]),
        ("a cat and a cat on a mat", ["a cat", "a cat on a mat"], ["a cat", "a cat on a mat"]),
        ("a man near a man", ["a man", "a man"], ["a man", "a man"]),
        ("a man", ["a man", "a man"], ["a man", None]),
        ("the man in red shirt", ["the man in red", "red shirt"], ["the man in red", "shirt"]),
        ("(a+b) [c]", ["(a+b)", "[c]"], ["(a+b)", "[c]"]),
        ("nothing here", ["a whale", ""], [None, None]),
    ],
)
def test_spans_are_found(caption: str, phrases: list[str], expected: list[str | None]) -> None:
    spans = spans_of(caption, phrases)

    assert [caption[slice(*found[0])] if found else None for found in spans] == expected


def test_letters_that_change_their_length_in_lower_case_do_not_shift_what_follows() -> None:
    caption = "İstanbul: a red boat"
    ((start, end),) = spans_of(caption, ["A red boat"])[0]

    assert caption[start:end] == "a red boat"
