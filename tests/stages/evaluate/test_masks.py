"""Mask scores against values worked out by hand."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stages.evaluate.captions import phrase_similarity, phrases_equal
from stages.evaluate.masks import (
    Grounding,
    Pair,
    ap50,
    areas,
    best_pairs,
    cumulative_iou,
    greedy_pairs,
    iou,
    mask_recall,
    mask_recall_strict,
    mean_iou,
    mean_iou_strict,
    pair_ious,
    to_coco,
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


def random_pairs(seed: int, images: int) -> list[Pair]:
    """Draws bars, true and predicted, up to four of each an image, some of them equal and some invented."""
    chance = np.random.default_rng(seed)

    def some() -> Grounding:
        masks = []
        for _ in range(int(chance.integers(0, 5))):
            first, last = sorted(int(edge) for edge in chance.integers(0, SIZE_PX, 2))
            masks.append(bar(first, last))
        return Grounding(phrases=("thing",) * len(masks), masks=tuple(masks))

    return [Pair(predicted=some(), truth=some()) for _ in range(images)]


@pytest.mark.parametrize("seed", range(4))
def test_ap50_is_what_pycocotools_prints_as_ap_at_half_overlap(seed: int, tmp_path: Path) -> None:
    pairs = random_pairs(seed, 12)
    images = [{"id": number, "height": SIZE_PX, "width": SIZE_PX} for number in range(len(pairs))]
    truth, predicted = [], []
    for number, pair in enumerate(pairs):
        for mask in pair.truth.masks:
            area, box = float(coco_mask.area(to_coco(mask))), coco_mask.toBbox(to_coco(mask)).tolist()
            rle = {"size": [SIZE_PX, SIZE_PX], "counts": mask.counts}
            truth.append({"id": len(truth) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, "area": area,
                          "bbox": box, "segmentation": rle})  # fmt: skip
        predicted += [
            {"image_id": number, "category_id": 1, "score": 1.0,
             "segmentation": {"size": [SIZE_PX, SIZE_PX], "counts": mask.counts}}
            for mask in pair.predicted.masks
        ]  # fmt: skip
    (tmp_path / "truth.json").write_text(
        json.dumps({"images": images, "annotations": truth, "categories": [{"id": 1, "name": "object"}]})
    )
    (tmp_path / "predicted.json").write_text(json.dumps(predicted))

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "predicted.json")), "segm")
        evaluation.params.catIds = [1]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    assert 0 < evaluation.stats[1] < 1
    assert ap50(pairs) == pytest.approx(evaluation.stats[1], abs=1e-12)


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


def test_compat_recall_knows_phrases_by_their_numbers_and_strict_only_whole_pairs() -> None:
    # "<p> red circle </p> and <p> blue square </p> [SEG]": two phrases, one mask, which is that of the second phrase
    written = Grounding(phrases=("red circle", "blue square"), masks=(bar(4, 7),))
    paired = Grounding(phrases=("blue square",), masks=(bar(4, 7),))

    assert mask_recall([Pair(predicted=written, truth=TRUTH)], phrase_similarity) == 0.0
    assert mask_recall_strict([Pair(predicted=paired, truth=TRUTH)], phrase_similarity) == 0.5


def test_compat_recall_loses_all_hits_of_an_image_whose_matched_mask_has_no_phrase() -> None:
    # a [SEG] too many: its mask is matched second, and has no phrase of its number
    written = Grounding(phrases=("red circle",), masks=(bar(0, 3), bar(4, 6)))
    whole = Pair(predicted=TRUTH, truth=TRUTH)

    assert mask_recall([Pair(predicted=written, truth=TRUTH), whole], phrase_similarity) == 2 / 4


def test_compat_recall_ends_before_a_mask_without_phrase_that_overlaps_too_little() -> None:
    written = Grounding(phrases=("red circle",), masks=(bar(0, 3), bar(7, 9)))

    assert mask_recall([Pair(predicted=written, truth=TRUTH)], phrase_similarity) == 0.5


def test_compat_recall_gives_ties_to_the_earlier_true_mask() -> None:
    # all four pairs overlap alike; the first true mask is met with the first predicted one, whose phrase is wrong
    same = (bar(0, 3), bar(0, 3))
    truth = Grounding(phrases=("red circle", "blue square"), masks=same)
    crossed = Grounding(phrases=("blue square", "red circle"), masks=same)

    assert mask_recall([Pair(predicted=crossed, truth=truth)], phrase_similarity) == 0.0
    assert mask_recall([Pair(predicted=truth, truth=truth)], phrase_similarity) == 1.0


def test_an_image_without_predictions_counts_in_the_mean_and_among_the_labels() -> None:
    pairs = [Pair(predicted=EMPTY, truth=TRUTH), Pair(predicted=TRUTH, truth=TRUTH)]

    assert (mean_iou(pairs), mean_iou_strict(pairs)) == (0.5, 0.5)
    assert mask_recall(pairs, phrase_similarity) == mask_recall_strict(pairs, phrase_similarity) == 0.5


def test_shared_and_joined_pixels_give_cumulative_and_mean_iou() -> None:
    found = [areas(bar(0, 3), bar(2, 5)), areas(None, bar(0, 1)), areas(bar(7, 7), bar(7, 7))]

    assert found == [(20, 60), (0, 20), (10, 10)]
    assert cumulative_iou(found) == pytest.approx(30 / 90)
    assert [iou(*one) for one in found] == pytest.approx([1 / 3, 0.0, 1.0])
    assert (iou(0, 0), cumulative_iou([]), cumulative_iou([(0, 0)])) == (1.0, 0.0, 1.0)


def test_exact_recall_is_stricter_than_similar_recall() -> None:
    pairs = [Pair(predicted=grounding(red_square=(0, 3), blue_square=(4, 7)), truth=TRUTH)]

    assert mask_recall_strict(pairs, phrase_similarity) == 1.0
    assert mask_recall_strict(pairs, phrases_equal) == 0.5
