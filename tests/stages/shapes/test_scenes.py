"""Scenes: the same from the same seed, never crowded, and true to their plan."""

from itertools import pairwise

import numpy as np
import pytest

from stages.shapes.scenes import COLOURS, LEAST_VISIBLE, SHAPES, Scene, draw_scene
from stages.vision import box_of_mask


def scenes(count: int, *, image_px: int = 96, max_objects: int = 3) -> list[Scene]:
    return [
        draw_scene(np.random.default_rng([5, number]), image_px=image_px, max_objects=max_objects)
        for number in range(count)
    ]


def test_the_same_seed_draws_the_same_scene() -> None:
    first, again = scenes(5), scenes(5)

    for one, other in zip(first, again, strict=True):
        assert one.things == other.things
        assert (one.pixels_HW3 == other.pixels_HW3).all()
        assert (one.owner_HW == other.owner_HW).all()


@pytest.mark.parametrize("max_objects", [1, 2, 3, 4])
def test_things_stand_apart_from_left_to_right_and_no_two_share_a_colour(max_objects: int) -> None:
    for scene in scenes(40, max_objects=max_objects):
        boxes = [box_of_mask(scene.mask(number)) for number in range(len(scene.things))]
        centres = [(box[0] + box[2]) / 2 for box in boxes if box is not None]

        assert len(centres) == len(scene.things) <= max_objects
        assert all(right - left >= 18 for left, right in pairwise(centres))
        assert len({thing.colour for thing in scene.things}) == len(scene.things)


def test_no_thing_is_hidden_or_cut_off() -> None:
    for scene in scenes(60):
        for number, thing in enumerate(scene.things):
            whole_px = np.pi * (thing.radius * 96) ** 2  # every shape has the area of its circle

            assert scene.mask(number).sum() >= 0.9 * LEAST_VISIBLE * whole_px
        assert not scene.owner_HW[[0, -1]].any()
        assert not scene.owner_HW[:, [0, -1]].any()


def test_pixels_of_a_plain_thing_have_its_colour() -> None:
    seen = set()
    for scene in scenes(60):
        for number, thing in enumerate(scene.things):
            if thing.texture == "plain":
                middle = np.median(scene.pixels_HW3[scene.mask(number)], axis=0)
                assert np.abs(middle - COLOURS[thing.colour]).max() <= 16
                seen.add(thing.colour)

    assert seen == set(COLOURS)


def test_all_that_can_be_said_occurs() -> None:
    drawn = [thing for scene in scenes(150) for thing in scene.things]

    assert {thing.shape for thing in drawn} == set(SHAPES)
    assert {thing.size for thing in drawn} == {"small", "large"}
    assert {thing.texture for thing in drawn} == {"plain", "striped", "dotted"}
    assert {scene.ground for scene in scenes(60)} == {"grey", "brown", "sandy", "dark"}
    assert {len(scene.things) for scene in scenes(60)} == {1, 2, 3}


def test_small_and_large_never_meet() -> None:
    small_px = [mask.sum() for mask, size in _whole() if size == "small"]
    large_px = [mask.sum() for mask, size in _whole() if size == "large"]

    assert max(small_px) < 0.7 * min(large_px)


def _whole() -> list[tuple[np.ndarray, str]]:
    return [(scene.mask(0), scene.things[0].size) for scene in scenes(60, max_objects=1)]
