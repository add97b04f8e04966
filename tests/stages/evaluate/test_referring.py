"""Referring segmentation: which expressions are asked, and what every kind of answer is worth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.errors import StageFailed
from stages.evaluate.answers import Answer, Said
from stages.evaluate.benchmark import Tools
from stages.evaluate.caption_scorers import open_caption_scorer
from stages.evaluate.likeness import BY_WORDS
from stages.evaluate.referring import REFER, REFER_COMPAT, read_expressions, read_some_expressions
from stages.family import Referred
from stages.samples import Region, Sample
from stages.vision import Mask, rle_from_mask
from tests.stages.scenes import scene

TOOLS = Tools(captions=open_caption_scorer("plain"), likeness=BY_WORDS)
IMAGE = Image.new("RGB", (10, 10))


def rows(first: int, last: int) -> Mask:
    """Masks the rows first..last of a 10 x 10 image."""
    mask_HW = np.zeros((10, 10), dtype=np.bool_)
    mask_HW[first : last + 1] = True
    return mask_HW


def region(mask_HW: Mask | None, *phrases: str, **more: Any) -> Region:
    mask = None if mask_HW is None else rle_from_mask(mask_HW)
    return Region(box_xyxy_px=(0, 0, 10, 10), mask=mask, phrase=phrases[0], more_phrases=phrases[1:], **more)


def sample(*regions: Region, key: str = "one", caption: str = "") -> Sample:
    return Sample(key=key, image=scene(0).image, width_px=10, height_px=10, caption=caption, regions=regions)


class Pointing:
    """Answers expressions from a table: expression -> the masks it points at."""

    def __init__(self, masks: dict[str, list[Mask]]) -> None:
        self._masks = masks

    def refer(self, image: Image.Image, expression: str, *, max_new_tokens: int) -> Referred:
        del image, max_new_tokens
        return Referred(text="", masks_HW=tuple(self._masks[expression]))

    def refer_told(self, image: Image.Image, expressions: Sequence[str]) -> list[Mask | None]:
        del image
        return [next(iter(self._masks[text]), None) for text in expressions]


def strict_scores(told: dict[str, list[Mask]], truth: dict[str, Mask]) -> dict[str, float]:
    reference = Answer(caption="", said=tuple(Said(phrase=one, mask=rle_from_mask(truth[one])) for one in truth))
    answers = REFER.ask(Pointing(told), [IMAGE], [reference], 8)  # type: ignore[arg-type]  # only points
    return REFER.score(answers, [reference], TOOLS)


def test_every_expression_of_a_region_is_a_question_but_words_of_captions_and_crowds_are_none() -> None:
    asked = read_expressions(
        sample(
            region(rows(0, 1), "left dog", "the brown one"),
            region(rows(2, 3), "dogs", crowd=True),
            region(None, "no mask"),
            region(rows(4, 5), "A dog", spans=((0, 5),)),
            caption="A dog.",
        )
    )

    assert asked is not None
    assert [said.phrase for said in asked.said] == ["left dog", "the brown one"]
    assert read_expressions(sample(region(None, "no mask"))) is None


def test_the_compat_protocol_draws_three_expressions_an_image_from_seed_and_key() -> None:
    words = [f"Thing {number}" for number in range(9)]
    many = sample(*(region(rows(number, number), words[number]) for number in range(9)))

    drawn = [read_some_expressions(many, seed) for seed in range(20)]

    chosen = [tuple(said.phrase for said in answer.said) for answer in drawn if answer is not None]
    assert {len(set(phrases)) for phrases in chosen} == {3}
    assert {phrase for phrases in chosen for phrase in phrases} == {word.lower() for word in words}
    assert len(set(chosen)) > 10
    assert read_some_expressions(many, 4) == drawn[4]
    other = read_some_expressions(sample(*many.regions, key="two"), 4)
    assert other != drawn[4]


def test_the_compat_protocol_asks_for_all_of_two_expressions_in_their_order() -> None:
    few = sample(region(rows(0, 1), "Left dog"), region(rows(2, 3), "Cat"))

    asked = read_some_expressions(few, 0)

    assert asked is not None
    assert [said.phrase for said in asked.said] == ["left dog", "cat"]


def test_an_answer_without_seg_has_found_nothing() -> None:
    scores = strict_scores({"dog": [], "cat": [rows(0, 4)]}, {"dog": rows(0, 4), "cat": rows(0, 4)})

    # 50 px of 50 + 50; the mean of 0 and 1
    assert scores == pytest.approx({"ciou": 0.5, "giou": 0.5, "precision50": 0.5, "pointed_once": 0.5})


def test_a_seg_too_many_counts_with_its_pixels() -> None:
    scores = strict_scores({"dog": [rows(0, 3), rows(8, 9)]}, {"dog": rows(0, 3)})

    assert scores == pytest.approx({"ciou": 4 / 6, "giou": 4 / 6, "precision50": 1.0, "pointed_once": 0.0})


def test_nothing_where_there_is_nothing_is_right_and_something_is_wrong() -> None:
    none = np.zeros((10, 10), dtype=np.bool_)

    assert strict_scores({"unicorn": []}, {"unicorn": none})["giou"] == 1.0
    assert strict_scores({"unicorn": [rows(0, 0)]}, {"unicorn": none})["giou"] == 0.0


def test_a_mask_of_another_size_than_its_image_is_refused_with_both_sizes() -> None:
    wrong = np.ones((4, 5), dtype=np.bool_)

    with pytest.raises(StageFailed, match=r"the mask of 'dog' has 4 x 5 pixels \(height x width\), its image 10 x 10"):
        strict_scores({"dog": [wrong]}, {"dog": rows(0, 1)})


def test_the_compat_scores_have_the_small_numbers_of_the_released_script() -> None:
    reference = Answer(
        caption="", said=tuple(Said(phrase=text, mask=rle_from_mask(rows(0, 3))) for text in ("dog", "cat", "cut off"))
    )
    model = Pointing({"dog": [rows(0, 1)], "cat": [rows(0, 3)], "cut off": []})

    answers = REFER_COMPAT.ask(model, [IMAGE], [reference], 8)  # type: ignore[arg-type]  # only points
    scores = REFER_COMPAT.score(answers, [reference], TOOLS)

    # 20 of 40 px, 40 of 40, 0 of 40
    assert scores["ciou"] == pytest.approx(60 / (120 + 1e-10), rel=1e-14)
    assert scores["giou"] == pytest.approx((20 / (40 + 1e-5) + 40 / (40 + 1e-5) + 0) / (3 + 1e-5), rel=1e-14)
    assert scores["giou"] < 0.5
