"""How much boxes overlap. Shapes: N and M boxes, xyxy in any one unit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Boxes = Sequence[Sequence[float]] | NDArray[np.floating[Any]]


def box_ious(first: Boxes, second: Boxes) -> Floats:
    """Returns the IoU of each box with each: N x M. A box without an area overlaps nothing."""
    first_N4, second_M4 = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in (first, second))
    low_NM2 = np.maximum(first_N4[:, None, :2], second_M4[None, :, :2])
    high_NM2 = np.minimum(first_N4[:, None, 2:], second_M4[None, :, 2:])
    shared_NM = (high_NM2 - low_NM2).clip(min=0).prod(axis=-1)
    together_NM = _areas(first_N4)[:, None] + _areas(second_M4)[None] - shared_NM
    ious_NM: Floats = np.divide(shared_NM, together_NM, out=np.zeros_like(shared_NM), where=together_NM > 0)
    return ious_NM


def _areas(boxes_N4: Floats) -> Floats:
    areas_N: Floats = (boxes_N4[:, 2:] - boxes_N4[:, :2]).clip(min=0).prod(axis=-1)
    return areas_N
