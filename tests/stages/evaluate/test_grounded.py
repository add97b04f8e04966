"""Grounded captions: what every kind of broken answer is worth, in both modes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.errors import StageFailed
from stages.evaluate.answers import Answer
from stages.evaluate.benchmark import Tools
from stages.evaluate.caption_scorers import open_caption_scorer
from stages.evaluate.grounded import GCG, read_grounded
from stages.evaluate.likeness import BY_WORDS
from stages.family import GroundedCaption, GroundedPhrase, Unpaired
from stages.samples import Sample
from stages.vision import Mask, mask_from_rle
from tests.stages.scenes import scene

TOOLS = Tools(captions=open_caption_scorer("plain"), likeness=BY_WORDS)
SCENE = scene(0)  # "A red bar stands left of a green bar."
LEFT, RIGHT = (mask_from_rle(region.mask) for region in SCENE.regions if region.mask)
IMAGE = Image.new("RGB", (SCENE.width_px, SCENE.height_px))


class Saying:
    """Says one caption of every image."""

    def __init__(self, said: GroundedCaption) -> None:
        self._said = said

    def ground(self, images: Any, *, max_new_tokens: int) -> list[GroundedCaption]:
        del max_new_tokens
        return [self._said for _ in images]


def phrase(number: int, mask_HW: Mask) -> GroundedPhrase:
    span = SCENE.regions[number].spans[0]
    return GroundedPhrase(phrase=SCENE.caption[slice(*span)], span=span, mask_HW=mask_HW)


def scores_of(said: GroundedCaption, truth: Sample = SCENE) -> dict[str, float]:
    reference = read_grounded(truth)
    assert reference is not None
    answers = GCG.ask(Saying(said), [IMAGE], [reference], 8)  # type: ignore[arg-type]  # only grounds
    again = [Answer.from_plain(answer.to_plain()) for answer in answers]
    assert again == answers
    return GCG.score(again, [Answer.from_plain(reference.to_plain())], TOOLS)


def test_no_seg_at_all_scores_the_caption_and_misses_every_mask() -> None:
    scores = scores_of(GroundedCaption(caption=SCENE.caption, phrases=()))

    assert scores["meteor"] > 0.9
    masked = ("miou", "miou_strict", "ap50", "mask_recall", "mask_recall_strict", "phrases_found")
    assert {scores[name] for name in masked} == {0.0}


def test_an_empty_caption_scores_nothing() -> None:
    assert set(scores_of(GroundedCaption(caption="", phrases=())).values()) == {0.0}


def test_a_seg_too_many_is_a_mask_in_compat_and_nothing_in_strict() -> None:
    whole = (phrase(0, LEFT), phrase(1, RIGHT))
    loose = Unpaired(phrases=tuple(one.phrase for one in whole), masks_HW=(LEFT, RIGHT, ~LEFT))

    broken = scores_of(GroundedCaption(caption=SCENE.caption, phrases=whole, unpaired=loose))

    assert (broken["miou_strict"], broken["mask_recall_strict"]) == (1.0, 1.0)
    assert (broken["miou"], broken["mask_recall"]) == (1.0, 1.0)  # it is matched with nothing that is left
    assert broken["ap50"] == pytest.approx(1.0)  # and comes after all true ones, as every prediction scores alike


def test_a_phrase_without_seg_moves_the_numbers_in_compat_alone() -> None:
    # as if the first phrase had been closed without its mask: the only mask is the second phrase's
    loose = Unpaired(phrases=("A red bar", phrase(1, RIGHT).phrase), masks_HW=(RIGHT,))

    scores = scores_of(GroundedCaption(caption=SCENE.caption, phrases=(phrase(1, RIGHT),), unpaired=loose))

    assert scores["mask_recall_strict"] == 0.5
    assert scores["mask_recall_exact"] == 0.5
    assert scores["miou"] == 1.0
    assert scores["miou_strict"] == 0.5


def test_a_mask_of_another_size_than_its_image_is_refused_with_both_sizes() -> None:
    wrong = np.ones((4, 5), dtype=np.bool_)

    with pytest.raises(StageFailed, match=r"'A red bar' has 4 x 5 pixels \(height x width\), its image 40 x 40"):
        scores_of(GroundedCaption(caption=SCENE.caption, phrases=(phrase(0, wrong),)))
    loose = Unpaired(phrases=(), masks_HW=(wrong,))
    with pytest.raises(StageFailed, match="has 4 x 5 pixels"):
        scores_of(GroundedCaption(caption=SCENE.caption, phrases=(), unpaired=loose))


def test_labels_of_the_benchmark_that_the_caption_does_not_say_count_in_compat_alone() -> None:
    first, second = (replace(region, source="grand_f") for region in SCENE.regions)
    unsaid = replace(SCENE, regions=(first, replace(second, spans=(), phrase="a green post")))

    scores = scores_of(GroundedCaption(caption=SCENE.caption, phrases=(phrase(0, LEFT),)), unsaid)

    assert (scores["mask_recall"], scores["mask_recall_strict"]) == (0.5, 1.0)
    assert (scores["miou"], scores["miou_strict"]) == (1.0, 1.0)
    assert scores["ap50"] == pytest.approx(51 / 101)
