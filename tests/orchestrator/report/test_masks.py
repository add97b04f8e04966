"""Masks as outlines: what a browser fills is what was set, and nothing that is no mask is drawn."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from orchestrator.report.masks import outline_of
from stages.vision import rle_from_mask

MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12))


def plain(mask_HW: np.ndarray) -> dict[str, object]:
    rle = rle_from_mask(mask_HW)
    return {"size": [rle.height_px, rle.width_px], "counts": rle.counts}


def filled(path: str, height_px: int, width_px: int) -> np.ndarray:
    """Fills a path by its winding number, as browsers do: edges left of a pixel add one up, take one down."""
    winding_HW = np.zeros((height_px, width_px), dtype=np.int64)
    for ring in path.split("M")[1:]:
        x, y = (int(number) for number in re.match(r"(\d+),(\d+)", ring).groups())
        first = (x, y)
        for axis, length in re.findall(r"([hv])(-?\d+)", ring):
            step = int(length)
            if axis == "h":
                x += step
                continue
            winding_HW[min(y, y + step) : max(y, y + step), x:] += 1 if step < 0 else -1
            y += step
        if x == first[0] and y != first[1]:  # the stretch that "z" draws
            winding_HW[min(y, first[1]) : max(y, first[1]), x:] += 1 if first[1] < y else -1
    return winding_HW != 0


@settings(deadline=None)
@given(MASKS)
def test_an_outline_filled_is_the_mask(mask_HW: np.ndarray) -> None:
    outline = outline_of(plain(mask_HW))

    if outline is None:
        assert not mask_HW.any()
    else:
        assert (filled(outline.path, *mask_HW.shape) == mask_HW).all()


@settings(deadline=None)
@given(MASKS.filter(np.any))
def test_a_number_stands_inside_of_its_mask(mask_HW: np.ndarray) -> None:
    outline = outline_of(plain(mask_HW))

    assert outline is not None
    x, y = outline.inside_xy
    assert mask_HW[int(y) if y < mask_HW.shape[0] else -1, int(x)] or mask_HW[int(np.ceil(y)) - 1, int(x)]


def test_an_outline_of_a_rectangle_has_four_corners() -> None:
    mask_HW = np.zeros((40, 60), dtype=np.bool_)
    mask_HW[5:35, 10:50] = True

    outline = outline_of(plain(mask_HW))

    assert outline is not None
    assert len(re.findall(r"[hv]", outline.path)) <= 4
    assert outline.inside_xy == (29.5, 20.0)


@pytest.mark.parametrize(
    "nonsense",
    [
        None, "mask", {}, {"size": [4, 4]}, {"size": [4, 4], "counts": [16]}, {"size": [4], "counts": "0"},
        {"size": [10**9, 10**9], "counts": "0"}, {"size": [-4, 4], "counts": "0"}, {"size": ["4", "4"], "counts": "`0"},
        {"size": [4, 4], "counts": '"><script>alert(1)</script>'}, {"size": [4, 4], "counts": "o" * 100_000},
        {"size": [4, 4], "counts": "\u00e9"}, {"size": [4, 4], "counts": "1"},
    ],
)  # fmt: skip
def test_what_is_no_mask_is_not_drawn(nonsense: object) -> None:
    assert outline_of(nonsense) is None


@settings(deadline=None)
@given(st.text(alphabet=[chr(code) for code in range(48, 112)], max_size=40), st.integers(1, 9), st.integers(1, 9))
def test_any_text_is_a_mask_or_none(counts: str, height_px: int, width_px: int) -> None:
    outline = outline_of({"size": [height_px, width_px], "counts": counts})

    assert outline is None or re.fullmatch(r"(M\d+,\d+([hv]-?\d+)+z)+", outline.path)
