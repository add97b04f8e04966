"""Mask scores against values worked out by hand."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from stages.evaluate.captions import phrase_similarity, phrases_equal
from stages.evaluate.masks import (
    Grounding,
    Pair,
    ap50,
    best_pairs,
    greedy_pairs,
    mask_recall,
    mask_recall_strict,
    mean_iou,
    mean_iou_strict,
    pair_ious,
)
from stages.samples import Rle

SIZE_PX = 10


def bar(first: int, last: int) -> Rle:
    """Makes a mask of the rows first..last of a 10 x 10 image."""
    mask = np.zeros((SIZE_PX, SIZE_PX), dtype=np.uint8, order="F")
    mask[first : last + 1] = 1
    return Rle(height_px=SIZE_PX, width_px=SIZE_PX, counts=coco_mask.encode(mask)["counts"].decode())


def grounding(**rows: tuple[int, int]) -> Grounding:
    """Makes a grounding with one bar a phrase; underscores of a name are spaces."""
    return Grounding(
        phrases=tuple(name.replace("_", " ") for name in rows), masks=tuple(bar(*span) for span in rows.values())
    )


TRUTH = grounding(red_circle=(0, 3), blue_square=(4, 7))
# red circle: rows 0..1 of 0..3 -> IoU 0.5; the second covers rows 4..6 of 4..7 -> 0.75; the third covers nothing true
PREDICTED = grounding(red_circle=(0, 1), blue_square=(4, 6), green_star=(9, 9))
EMPTY = Grounding(phrases=(), masks=())


def test_iou_of_bars_is_the_share_of_common_rows() -> None:
    ious = pair_ious(Pair(predicted=PREDICTED, truth=TRUTH))

    assert ious.tolist() == [[0.5, 0.0], [0.0, 0.75], [0.0, 0.0]]


def test_greedy_matching_takes_the_largest_first_and_stops_at_zero() -> None:
    ious = np.array([[0.6, 0.5], [0.55, 0.0]])

    assert greedy_pairs(ious) == [(0, 0, 0.6)]


def test_the_best_assignment_may_give_up_the_largest_pair() -> None:
    ious = np.array([[0.6, 0.5], [0.55, 0.0]])

    assert best_pairs(ious) == [(0, 1, 0.5), (1, 0, 0.55)]


def test_compat_miou_forgives_what_has_no_partner_and_strict_does_not() -> None:
    half = Pair(predicted=grounding(red_circle=(0, 3)), truth=TRUTH)

    assert mean_iou([half]) == 1.0
    assert mean_iou_strict([half]) == 0.5


def test_miou_is_averaged_over_images_and_an_empty_answer_counts_zero() -> None:
    pairs = [Pair(predicted=PREDICTED, truth=TRUTH), Pair(predicted=EMPTY, truth=TRUTH)]

    assert mean_iou(pairs) == pytest.approx((0.5 + 0.75) / 2 / 2)
    assert mean_iou_strict(pairs) == pytest.approx((0.5 + 0.75) / 2 / 2)


def test_ap50_is_precision_over_recall_at_half_overlap() -> None:
    truth = grounding(a=(0, 3), b=(4, 7))

    assert ap50([Pair(predicted=truth, truth=truth)]) == pytest.approx(1.0)
    # the first of two answers is right: recall reaches 0.5 at precision 1, that is 51 of COCO's 101 recall points
    wrong_second = grounding(a=(0, 3), b=(8, 9))
    assert ap50([Pair(predicted=wrong_second, truth=truth)]) == pytest.approx(51 / 101)
    assert ap50([Pair(predicted=EMPTY, truth=truth)]) == 0.0
    assert ap50([Pair(predicted=truth, truth=EMPTY)]) == 0.0


def test_ap50_says_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    ap50([Pair(predicted=TRUTH, truth=TRUTH)])

    assert capfd.readouterr().out == ""


def test_recall_wants_mask_and_phrase() -> None:
    pairs = [Pair(predicted=PREDICTED, truth=TRUTH)]
    renamed = grounding(yellow_ring=(0, 1), blue_square=(4, 6))

    assert mask_recall(pairs, phrase_similarity) == 1.0
    assert mask_recall([Pair(predicted=renamed, truth=TRUTH)], phrase_similarity) == 0.5


def test_compat_recall_stops_at_the_first_miss_and_strict_goes_on() -> None:
    # the best overlap (0.75) bears the wrong phrase, the second best (0.5) the right one
    pairs = [Pair(predicted=grounding(red_circle=(0, 1), yellow_ring=(4, 6)), truth=TRUTH)]

    assert mask_recall(pairs, phrase_similarity) == 0.0
    assert mask_recall_strict(pairs, phrase_similarity) == 0.5


def test_exact_recall_is_stricter_than_similar_recall() -> None:
    pairs = [Pair(predicted=grounding(red_square=(0, 3), blue_square=(4, 7)), truth=TRUTH)]

    assert mask_recall_strict(pairs, phrase_similarity) == 1.0
    assert mask_recall_strict(pairs, phrases_equal) == 0.5
