"""RoIAlign against its formula."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from stages.roi import roi_align

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
