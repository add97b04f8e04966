"""An image that is scaled, cut or mirrored keeps its words: boxes and masks lie where the pixels lie."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from stages.pixelllm.augment import PUBLISHED, Augmentation, augmented
from stages.pixelllm.collate import Example
from stages.pixelllm.tasks import Rules, caption_row, refer_row, region_row
from stages.vision import box_of_mask, mask_from_rle, rle_from_mask
from tests.stages.pixelllm_models import drawn, narrated, pieces, tiny_task

LARGER = Augmentation(smallest=1.2, largest=2.0, mirrored=True)


def example(width_px: int = 60, height_px: int = 40) -> Example:
    """Paints two things red and blue, and says where they are."""
    pixels_HWC = np.zeros((height_px, width_px, 3), dtype=np.uint8)
    rows = []
    for channel, (x0, y0, x1, y1) in ((0, (5, 8, 20, 30)), (2, (35, 10, 55, 20))):
        mask_HW = np.zeros((height_px, width_px), dtype=np.bool_)
        mask_HW[y0:y1, x0:x1] = True
        pixels_HWC[mask_HW, channel] = 255
        rows.append(refer_row("it", (x0, y0, x1, y1), rle_from_mask(mask_HW)))
    boxes = tuple(row.target_xyxy_px for row in rows if row.target_xyxy_px is not None)
    return Example(image=Image.fromarray(pixels_HWC), rows=tuple(rows), boxes_xyxy_px=boxes)


@pytest.mark.parametrize("seed", range(12))
def test_boxes_and_masks_lie_where_the_pixels_of_their_thing_lie(seed: int) -> None:
    changed = augmented(example(), LARGER, seed=seed)

    pixels_HWC = np.asarray(changed.image)
    seen = [pixels_HWC[..., channel] > 0 for channel in (0, 2)]
    shown = [mask_HW for mask_HW in seen if mask_HW.any()]
    assert 0 < len(changed.rows) == len(shown)
    for row, mask_HW in zip(changed.rows, shown, strict=True):
        assert row.target_xyxy_px == box_of_mask(mask_HW)
        assert row.target_mask is not None
        assert np.array_equal(mask_from_rle(row.target_mask), mask_HW)
    assert changed.boxes_xyxy_px == tuple(row.target_xyxy_px for row in changed.rows)


def test_views_are_a_function_of_the_seed_and_differ_in_place_size_and_side() -> None:
    views = [np.asarray(augmented(example(), LARGER, seed=seed).image) for seed in range(12)]
    again = np.asarray(augmented(example(), LARGER, seed=3).image)

    assert np.array_equal(views[3], again)
    assert len({view.shape for view in views}) > 3
    assert {bool(view[:, : view.shape[1] // 2, 0].any()) for view in views} == {True, False}


def test_a_smaller_image_takes_less_of_the_canvas() -> None:
    task = tiny_task(pieces())
    half = augmented(example(), Augmentation(smallest=0.5, largest=0.5), seed=1)

    batch = task.collator.batch([half])

    assert batch.inside_B2.tolist() == [[16, round(16 * 40 / 60)]]
    assert not batch.semantic_pixels_BCHW[..., 16:].any()
    first = batch.corners_NL22[0, int(batch.last_N[0])].flatten().tolist()
    assert first == pytest.approx([5 * 16 / 60, 8 * 11 / 40, 20 * 16 / 60, 30 * 11 / 40])


def test_the_prompts_of_regions_are_cut_and_words_about_the_whole_stay() -> None:
    whole = replace(example(), rows=(region_row((0.0, 0.0, 60.0, 40.0), "all"), caption_row("all", detailed=False)))

    changed = augmented(whole, LARGER, seed=2)

    assert changed.rows[0].box_xyxy_px == (0, 0, *changed.image.size)
    assert changed.rows[1] == whole.rows[1]


def test_a_view_that_shows_nothing_of_what_is_said_is_not_taken() -> None:
    corner = replace(example(), rows=(refer_row("it", (0.0, 0.0, 1.0, 1.0)),))
    far = Augmentation(smallest=6.0, largest=6.0)

    kept = [augmented(corner, far, seed=seed) for seed in range(20)]

    assert any(one.image.size == (60, 40) for one in kept)
    assert all(len(one.rows) == 1 for one in kept)


def test_a_recipe_asks_for_it_and_narratives_stay_whole() -> None:
    plain, changing = tiny_task(pieces()), tiny_task(pieces(), rules=Rules(augments=True))

    for source, same in (("traces", True), ("expressions", False)):
        one, other = (task.example(drawn(source, narrated(0), seed=6)) for task in (plain, changing))
        assert ((one.image.size, one.share) == (other.image.size, other.share)) == same
    assert "trace" not in PUBLISHED
