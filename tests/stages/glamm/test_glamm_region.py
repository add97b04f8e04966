"""Boxes become tokens: RoIAlign against its formula, levels, boxes that mean what they say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from orchestrator.errors import InputError
from stages.glamm.config import RegionConfig
from stages.glamm.region import RegionEncoder, roi_align

CONFIG = RegionConfig(
    layers=(1, 2), upsample=(2, 1), channels=8, rounds=2, groups=2, roi_size=3, sampling=2, position_size=8
)
UNIT = some.floats(0, 1)


def by_formula(map_CHW: Tensor, box: list[float], *, size: int, sampling: int) -> Tensor:
    """Samples each point by hand: bilinear, pixel centres at half cells, the border's value outside of them."""
    channels, height, width = map_CHW.shape
    out = torch.zeros(channels, size, size)
    x0, y0, x1, y1 = box
    for row in range(size):
        for column in range(size):
            for i in range(sampling):
                for j in range(sampling):
                    y = (y0 + (y1 - y0) * (row + (i + 0.5) / sampling) / size) * height - 0.5
                    x = (x0 + (x1 - x0) * (column + (j + 0.5) / sampling) / size) * width - 0.5
                    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                    top, left = math.floor(y), math.floor(x)
                    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    dy, dx = y - top, x - left
                    value = (1 - dy) * ((1 - dx) * map_CHW[:, top, left] + dx * map_CHW[:, top, right])
                    value = value + dy * ((1 - dx) * map_CHW[:, below, left] + dx * map_CHW[:, below, right])
                    out[:, row, column] += value / sampling**2
    return out


@settings(max_examples=40, deadline=None)
@given(
    corners=some.tuples(UNIT, UNIT, UNIT, UNIT),
    shape=some.tuples(some.integers(2, 7), some.integers(2, 7)),
    size=some.integers(1, 4),
    sampling=some.integers(1, 3),
)
def test_roi_align_is_what_its_formula_says(
    corners: tuple[float, float, float, float], shape: tuple[int, int], size: int, sampling: int
) -> None:
    xs, ys = sorted(corners[:2]), sorted(corners[2:])
    box = [xs[0], ys[0], xs[1], ys[1]]
    maps = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(3))

    found = roi_align(maps, torch.tensor([box]), torch.tensor([1]), size=size, sampling=sampling)

    torch.testing.assert_close(found[0], by_formula(maps[1], box, size=size, sampling=sampling), atol=1e-4, rtol=1e-4)


def test_a_region_is_told_by_its_own_image_alone() -> None:
    encoder = encoder_of(CONFIG)
    levels = [torch.randn(2, 16, 5) for _ in range(2)]
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]])

    together = encoder(levels, boxes, torch.tensor([0, 0, 1]), 1.0)
    alone = encoder([level[1:] for level in levels], boxes[2:], torch.tensor([0]), 1.0)

    assert together.shape == (3, 12)
    torch.testing.assert_close(together[2:], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[2])


def test_the_published_weights_scale_moves_regions_but_not_positions() -> None:
    encoder = encoder_of(CONFIG)
    levels = [torch.randn(1, 16, 5) for _ in range(2)]
    box, image = torch.tensor([[0.0, 0.0, 0.9, 0.9]]), torch.tensor([0])

    whole, shrunk = encoder(levels, box, image, 1.0), encoder(levels, box, image, 224 / 336)

    assert not torch.allclose(whole, shrunk)


def test_levels_and_factors_must_pair() -> None:
    with pytest.raises(InputError, match="upsample"):
        RegionConfig(layers=(1, 2), upsample=(2, 1, 1))


def encoder_of(config: RegionConfig) -> RegionEncoder:
    torch.manual_seed(5)
    return RegionEncoder(config, vision_size=5, language_size=12)
