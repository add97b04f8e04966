"""What a step looks at: regions with their masks and texts, whole images now and then, squares of four channels."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from orchestrator.errors import InputError
from stages.pixclip.collate import Collator, Example
from stages.pixclip.pairs import Pair, draw_pair, texts_of
from stages.pixclip.squares import seen_through
from stages.samples import Caption, Sample
from stages.vision import mask_from_rle
from stages.windows import whole
from tests.stages.pixclip_models import PIECES
from tests.stages.scenes import SIDE_PX, scene

SCENE = scene(1)
INSIDE = (1 - 0.5) / 0.26
OUTSIDE = (0 - 0.5) / 0.26


def bare(sample: Sample) -> Sample:
    return replace(sample, regions=())


def test_a_pair_is_a_region_with_its_mask_and_long_text_and_follows_from_the_seed() -> None:
    pairs = [draw_pair(SCENE, seed, whole_share=0.0) for seed in range(20)]

    assert {pair.text for pair in pairs} == {"the green bar", "the blue bar"}
    for pair in pairs:
        (region,) = (region for region in SCENE.regions if region.caption == pair.text)
        assert region.mask is not None
        assert pair.box_xyxy_px == region.box_xyxy_px
        assert np.array_equal(pair.mask_HW, mask_from_rle(region.mask))
    again = [draw_pair(SCENE, seed, whole_share=0.0) for seed in range(20)]
    assert [pair.text for pair in again] == [pair.text for pair in pairs]


def test_whole_images_are_looked_at_as_often_as_asked() -> None:
    wholes = [pair for seed in range(400) if (pair := draw_pair(SCENE, seed, whole_share=0.25)).mask_HW is None]

    assert 60 < len(wholes) < 140
    assert {pair.text for pair in wholes} == {SCENE.caption}
    assert {pair.box_xyxy_px for pair in wholes} == {(0.0, 0.0, SIDE_PX, SIDE_PX)}


def test_an_image_with_a_caption_alone_is_whole_and_one_without_any_text_is_refused() -> None:
    assert draw_pair(bare(SCENE), 1, whole_share=0.0).text == SCENE.caption
    with pytest.raises(InputError, match=r"'scene0001' has no caption, and no region with a text"):
        draw_pair(replace(bare(SCENE), caption=" "), 1, whole_share=0.5)


def test_every_text_that_can_be_drawn_is_listed_once() -> None:
    first, second = SCENE.regions
    sample = replace(
        SCENE,
        regions=(first, replace(second, caption="", spans=(), phrase="a bar", more_phrases=("a blue one", "a bar"))),
        more_captions=(Caption(text="Two bars."), Caption(text="a bar")),
    )

    drawn = {draw_pair(sample, seed, whole_share=0.5).text for seed in range(200)}

    assert texts_of(sample) == ("the green bar", "a bar", "a blue one", SCENE.caption, "Two bars.")
    assert drawn == set(texts_of(sample))


def test_a_region_without_a_mask_is_its_box_and_crowds_are_left_alone() -> None:
    first, second = SCENE.regions
    sample = replace(SCENE, regions=(replace(first, mask=None), replace(second, crowd=True)))

    pairs = [draw_pair(sample, seed, whole_share=0.0) for seed in range(10)]

    assert {pair.text for pair in pairs} == {"the green bar"}
    assert pairs[0].mask_HW is not None
    assert pairs[0].mask_HW.sum() == 10 * 30


def test_masks_are_normalised_and_end_where_the_image_does() -> None:
    image = Image.new("RGB", (8, 4), "white")
    half_HW = np.zeros((4, 8), dtype=np.bool_)
    half_HW[:, :4] = True

    all_4SS = seen_through(whole(image), image, None, 8)
    half_4SS = seen_through(whole(image), image, half_HW, 8)

    assert np.allclose(all_4SS[3, 2:6], INSIDE)
    assert np.allclose(all_4SS[3, [0, 1, 6, 7]], OUTSIDE)
    assert np.allclose(half_4SS[3, 2:6, :4], INSIDE)
    assert np.allclose(half_4SS[3, 2:6, 4:], OUTSIDE)


def test_a_batch_has_crops_only_where_they_are_looked_at() -> None:
    image = Image.new("RGB", (8, 8), "white")
    mask_HW = np.zeros((8, 8), dtype=np.bool_)
    mask_HW[2:4, 2:4] = True
    examples = [
        Example(image=image, pair=Pair(text="a spot", box_xyxy_px=(2, 2, 4, 4), mask_HW=mask_HW)),
        Example(image=image, pair=Pair(text="all", box_xyxy_px=(0, 0, 8, 8), mask_HW=None)),
    ]

    plain = Collator(8, PIECES, 24, crop_scale=None).batch(examples)
    cropped = Collator(8, PIECES, 24, crop_scale=2.0).batch(examples)

    assert plain.crops_B4SS is None
    assert cropped.crops_B4SS is not None
    # a window of four pixels around two, scaled up: the region fills its middle; the whole image has nothing around it
    assert cropped.crops_B4SS[0, 3, 3:5, 3:5].min().item() == pytest.approx(INSIDE, abs=1e-3)
    assert cropped.crops_B4SS[0, 3, 0].max().item() == pytest.approx(OUTSIDE, abs=1e-3)
    assert cropped.crops_B4SS[1].equal(cropped.whole_B4SS[1])
    assert cropped.boxes_B4.tolist() == [[0.25, 0.25, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]]
