"""How well a shuffle mixes."""

import numpy as np
import pytest

from orchestrator.data.quality import measure_quality
from orchestrator.data.rules import ShuffleRule
from orchestrator.data.shuffle import shuffle_of


def test_a_full_shuffle_is_as_good_as_a_full_shuffle() -> None:
    quality = measure_quality(shuffle_of(ShuffleRule(), 200_000, 0, "a", 0), 200_000, block=1000, batch=64)

    assert quality.relative == pytest.approx(1, abs=0.01)
    assert quality.open_blocks == pytest.approx(quality.open_blocks_full, rel=0.01)
    assert quality.rank_correlation < 0.02
    assert quality.neighbour_correlation < 0.02


def test_no_shuffle_mixes_nothing() -> None:
    quality = measure_quality(shuffle_of(ShuffleRule(mode="none"), 100_000, 0, "a", 0), 100_000, block=1000, batch=50)

    assert quality.blocks_per_batch < 1.1
    assert quality.rank_correlation == pytest.approx(1)
    assert quality.neighbour_correlation == pytest.approx(1)


def test_blocks_mix_as_many_blocks_as_are_in_a_window_and_open_no_more() -> None:
    rule = ShuffleRule(mode="blocks", block=1000, window=64)
    size = 1_000_000

    quality = measure_quality(shuffle_of(rule, size, 0, "a", 0), size, block=1000, batch=64)

    assert quality.blocks_per_batch == pytest.approx(64 * (1 - (63 / 64) ** 64), rel=0.02)  # as from one window
    assert quality.relative > 0.6
    assert quality.open_blocks < 70
    assert quality.open_blocks_full > 900
    assert quality.rank_correlation < 0.1
    assert quality.neighbour_correlation < 0.05


def test_a_larger_window_mixes_better() -> None:
    found = [
        measure_quality(shuffle_of(ShuffleRule(mode="blocks", window=n), 10**6, 0, "a", 0), 10**6, block=1000, batch=64)
        for n in (1, 4, 16, 64, 256)
    ]

    assert sorted(quality.relative for quality in found) == [quality.relative for quality in found]
    assert sorted(quality.open_blocks for quality in found) == [quality.open_blocks for quality in found]


def test_the_values_of_a_full_shuffle_are_those_of_drawing_at_random() -> None:
    chance = np.random.default_rng(0)

    quality = measure_quality(lambda places: np.arange(5000, dtype=np.uint64)[places], 5000, block=300, batch=40)

    drawn = [len(set((chance.permutation(5000)[:40] // 300).tolist())) for _ in range(2000)]
    assert quality.blocks_per_batch_full == pytest.approx(np.mean(drawn), rel=0.01)


@pytest.mark.parametrize("size", [1, 2, 5, 63])
def test_a_source_smaller_than_a_batch_can_be_measured(size: int) -> None:
    quality = measure_quality(shuffle_of(ShuffleRule(), size, 0, "a", 0), size, block=10, batch=64)

    assert quality.relative == pytest.approx(1)
