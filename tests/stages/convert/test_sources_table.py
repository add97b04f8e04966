"""The table of data sets: every row can be read, is told apart from the others, and is documented."""

import importlib
from collections import Counter

import pytest

from stages.convert.sources import SOURCES
from tests.stages.conversion import REPOSITORY

README = (REPOSITORY / "stages" / "convert" / "README.md").read_text()
PARTS = [(source, part) for source, entry in SOURCES.items() for part in entry.parts]


@pytest.mark.parametrize("source", [name for name, entry in SOURCES.items() if not entry.own])
def test_every_data_set_is_in_the_table_of_the_readme(source: str) -> None:
    assert any(line.startswith("| `") and f"`{source}`" in line.split("|")[1] for line in README.splitlines())


@pytest.mark.parametrize("reader", sorted({part.reader for _, part in PARTS}))
def test_every_reader_exists(reader: str) -> None:
    module, _, function = reader.partition(":")

    assert callable(vars(importlib.import_module(module))[function])


def test_a_split_and_a_subset_name_one_part_of_a_data_set() -> None:
    named = Counter((source, part.split, part.subset) for source, part in PARTS)

    assert [name for name, count in named.items() if count > 1] == []


def test_every_split_means_something_when_no_subset_is_named() -> None:
    for source, entry in SOURCES.items():
        for split in {part.split for part in entry.parts if not entry.own}:
            assert entry.chosen(split, None), (source, split)


def test_every_data_set_says_under_which_licence_it_is() -> None:
    assert all(entry.licence for entry in SOURCES.values())
