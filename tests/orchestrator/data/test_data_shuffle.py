"""A permutation that is computed, not stored."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.data.rules import ShuffleRule
from orchestrator.data.shuffle import BlockShuffle, Shuffle, Shuffled, shuffle_of


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 100))
@settings(max_examples=200, deadline=None)
def test_every_number_appears_exactly_once(size: int, seed: int, epoch: int) -> None:
    found = Shuffle(size, seed, "a", epoch)(np.arange(size, dtype=np.uint64))

    assert list(range(size)) == sorted(found.tolist())


@pytest.mark.parametrize("size", [3, 5, 10, 100])
def test_over_many_epochs_every_sample_is_as_often_first_as_any_other(size: int) -> None:
    first = [int(Shuffle(size, 0, "a", epoch)(np.zeros(1, dtype=np.uint64))[0]) for epoch in range(40 * size)]

    assert stats.chisquare(np.bincount(first, minlength=size)).pvalue > 1e-4


def test_small_sets_come_in_all_their_orders() -> None:
    places = np.arange(4, dtype=np.uint64)

    orders = {tuple(Shuffle(4, 0, "a", epoch)(places).tolist()) for epoch in range(2000)}

    assert len(orders) == 24


def test_neighbours_do_not_stay_neighbours() -> None:
    found = Shuffle(100_000, 3, "a", 0)(np.arange(100_000, dtype=np.uint64)).astype(np.int64)

    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(found, np.arange(100_000))[0, 1]) < 0.02


def test_the_largest_sizes_stay_inside() -> None:
    size = 2**62 - 1

    found = Shuffle(size, 3, "a", 0)(np.arange(1000, dtype=np.uint64))

    assert len(set(found.tolist())) == 1000
    assert max(found.tolist()) < size


@given(st.integers(1, 400), st.integers(1, 100), st.integers(1, 9), st.integers(0, 2**40), st.integers(0, 100))
@settings(max_examples=200, deadline=None)
def test_a_block_shuffle_has_every_number_exactly_once(
    size: int, block: int, window: int, seed: int, epoch: int
) -> None:
    found = BlockShuffle(size, block, window, seed, "a", epoch)(np.arange(size, dtype=np.uint64))

    assert list(range(size)) == sorted(found.tolist())


@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 9), st.data())
@settings(max_examples=100, deadline=None)
def test_any_place_of_a_block_shuffle_is_found_without_the_others(
    size: int, block: int, window: int, data: st.DataObject
) -> None:
    shuffle = BlockShuffle(size, block, window, 3, "a", 0)
    places = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)), np.uint64)

    whole = shuffle(np.arange(size, dtype=np.uint64))

    assert whole[places.astype(np.int64)].tolist() == shuffle(places).tolist()


def test_a_window_is_read_from_its_own_blocks_only() -> None:
    found = BlockShuffle(100_000, 100, 10, 3, "a", 0)(np.arange(100_000, dtype=np.uint64)).astype(np.int64) // 100

    windows = [set(found[start : start + 1000].tolist()) for start in range(0, 100_000, 1000)]
    assert {10} == {len(blocks) for blocks in windows}
    assert 1000 == sum(len(blocks) for blocks in windows) == len(set().union(*windows))
    assert any(max(blocks) - min(blocks) > 500 for blocks in windows)  # the blocks of a window are no neighbours


def test_what_fills_no_block_joins_another_window_in_every_epoch() -> None:
    places = np.arange(1050, dtype=np.uint64)

    at = []
    for epoch in range(200):
        found = BlockShuffle(1050, 100, 2, 0, "a", epoch)(places)
        at.append(np.flatnonzero(found >= 1000).mean())

    assert max(at) > 800
    assert min(at) < 250
    assert np.histogram(at, bins=5, range=(0, 1050))[0].min() > 10


def test_a_block_shuffle_of_the_largest_source_stays_inside() -> None:
    size = 2**61

    found = BlockShuffle(size, 1000, 64, 3, "a", 0)(np.arange(size - 1000, size, dtype=np.uint64))

    assert len(set(found.tolist())) == 1000
    assert max(found.tolist()) < size


ASKED = st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 1), st.integers(0, 2999), st.integers(1, 1500))


@given(st.sampled_from(["full", "blocks", "none"]), st.lists(ASKED, min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_what_was_asked_for_before_plays_no_role(
    mode: Literal["full", "blocks", "none"], asked: list[tuple[str, int, int, int]]
) -> None:
    rule, size = ShuffleRule(mode=mode, block=100, window=4), 3000
    shuffled = Shuffled(rule, 3)

    for source, epoch, start, count in asked:
        places = np.arange(start, min(size, start + count), dtype=np.uint64)
        found = shuffled.samples(source, size, epoch, places)
        assert shuffle_of(rule, size, 3, source, epoch)(places).tolist() == found.tolist()


def test_what_was_found_can_be_changed_and_changes_nothing_else() -> None:
    shuffled, places = Shuffled(ShuffleRule(), 3), np.arange(10, dtype=np.uint64)

    first = shuffled.samples("a", 100, 0, places)
    before = first.tolist()
    first[:] = 0

    assert before == shuffled.samples("a", 100, 0, places).tolist()
