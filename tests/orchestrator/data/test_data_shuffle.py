"""A permutation that is computed, not stored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.data.shuffle import Shuffle


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
