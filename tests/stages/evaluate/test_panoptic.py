"""Panoptic scores: PQ against the computation of COCO's panoptic API, captions and mAP against hand-worked values."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.errors import StageFailed
from stages.evaluate.answers import Answer, Said, panel_of
from stages.evaluate.benchmark import Tools
from stages.evaluate.benchmarks import BENCHMARKS
from stages.evaluate.caption_scorers import open_caption_scorer
from stages.evaluate.likeness import open_likeness
from stages.evaluate.panoptic import (
    Matched,
    ask_segments,
    match_segments,
    panoptic_quality,
    read_segments,
    score_segments,
    segment_ious,
    shared_pixels,
)
from stages.evaluate.panoptic_captions import caption_map, caption_map_compat
from stages.evaluate.panoptic_files import write_panoptic
from stages.evaluate.questions import QUESTIONS
from stages.family import DescribedSegment
from stages.vision import Mask, decode_image, panoptic_ids, rle_from_mask
from tests.stages.conversion import COMMITTED
from tests.stages.scenes import scene

TOOLS = Tools(captions=open_caption_scorer("plain"), likeness=open_likeness(None))
SIDE, OFFSET = 10, 256**3
Ids = NDArray[np.int64]
Labels = Mapping[int, Mapping[str, Any]]  # segment number -> category_id, iscrowd


def rows(first: int, last: int) -> Mask:
    """Masks the rows first..last of a 10 x 10 picture."""
    mask_HW = np.zeros((SIDE, SIDE), dtype=np.bool_)
    mask_HW[first : last + 1] = True
    return mask_HW


def said(
    category: str, span: tuple[int, int], caption: str = "", *, score: float | None = None, crowd: bool = False
) -> Said:
    return Said(phrase=caption, category=category, mask=rle_from_mask(rows(*span)), score=score, crowd=crowd)


def answer(*segments: Said) -> Answer:
    return Answer(caption="", said=segments)


def quality(answers: list[Answer], references: list[Answer]) -> tuple[float, float, float]:
    matches = [match_segments(mine, true) for mine, true in zip(answers, references, strict=True)]
    found = panoptic_quality(answers, references, matches)
    return found.pq, found.sq, found.rq


# ------------------------------------------------------------------------- PQ as cocodataset/panopticapi defines it


def reference_quality(  # noqa: C901, PLR0912 - the definition in one piece
    images: list[tuple[Ids, Labels, Ids, Labels]],
) -> tuple[float, float, float]:
    """Computes PQ, SQ, RQ from id maps, as the published definition says (Kirillov et al. 2019; panopticapi).

    Matches: same category, IoU above 0.5, the union without pixels of the prediction that are void in the truth.
    Crowds are neither matched nor missed; a prediction is no false positive where more than half of it lies on void
    and on the crowd of its category.
    """
    stats: dict[int, list[float]] = defaultdict(lambda: [0.0, 0, 0, 0])  # sum of IoUs, tp, fp, fn
    for true_HW, true, mine_HW, mine in images:
        pairs, counts = np.unique(true_HW * OFFSET + mine_HW, return_counts=True)
        shared = {divmod(pair, OFFSET): count for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)}
        area_true = {g: int((true_HW == g).sum()) for g in true}
        area_mine = {p: int((mine_HW == p).sum()) for p in mine}
        matched_true, matched_mine = set(), set()
        for (g, p), count in shared.items():
            if g not in true or p not in mine or true[g]["iscrowd"]:
                continue
            if true[g]["category_id"] != mine[p]["category_id"]:
                continue
            union = area_mine[p] + area_true[g] - count - shared.get((0, p), 0)
            if count / union > 0.5:
                stat = stats[true[g]["category_id"]]
                stat[0] += count / union
                stat[1] += 1
                matched_true.add(g)
                matched_mine.add(p)
        crowd_of = {}
        for g, label in true.items():
            if g in matched_true:
                continue
            if label["iscrowd"]:
                crowd_of[label["category_id"]] = g
            else:
                stats[label["category_id"]][3] += 1
        for p, label in mine.items():
            if p in matched_mine:
                continue
            ignored = shared.get((0, p), 0)
            if label["category_id"] in crowd_of:
                ignored += shared.get((crowd_of[label["category_id"]], p), 0)
            if ignored / area_mine[p] <= 0.5:
                stats[label["category_id"]][2] += 1
    per_class = [
        (iou / (tp + fp / 2 + fn / 2), iou / tp if tp else 0.0, tp / (tp + fp / 2 + fn / 2))
        for iou, tp, fp, fn in stats.values()
        if tp + fp + fn
    ]
    pq, sq, rq = (sum(values) / len(per_class) for values in zip(*per_class, strict=True))
    return pq, sq, rq


def packed(split: str) -> list[tuple[Ids, dict[int, dict[str, Any]]]]:
    """Reads the panoptic truth of the sample pack as its files hold it."""
    plain = json.loads((COMMITTED / f"coco/annotations/panoptic_{split}2017.json").read_text(encoding="utf-8"))
    return [
        (
            panoptic_ids((COMMITTED / f"coco/panoptic_{split}2017" / one["file_name"]).read_bytes()).astype(np.int64),
            {segment["id"]: segment for segment in one["segments_info"]},
        )
        for one in plain["annotations"]
    ]


def answer_of(ids_HW: Ids, labels: Labels) -> Answer:
    return answer(
        *(
            Said(
                phrase="",
                category=str(label["category_id"]),
                mask=rle_from_mask(ids_HW == number),
                crowd=bool(label["iscrowd"]),
            )
            for number, label in labels.items()
        )
    )


def disturbed(rng: np.random.Generator, ids_HW: Ids, labels: Labels) -> tuple[Ids, dict[int, dict[str, Any]]]:
    """Makes a prediction that is wrong in every way: moved, cut, renamed, left out, invented over crowds and void."""
    shift = tuple(rng.integers(-12, 13, size=2).tolist())
    moved_HW = np.roll(ids_HW, shift, axis=(0, 1))
    categories = sorted({label["category_id"] for label in labels.values()})
    found: dict[int, dict[str, Any]] = {}
    mine_HW = np.zeros_like(ids_HW)
    for number, label in labels.items():
        fate = rng.random()
        if fate < 0.15:
            continue
        category = int(rng.choice(categories)) if fate < 0.3 else label["category_id"]
        mask_HW = moved_HW == number
        if fate > 0.85:  # a half of it
            mask_HW = mask_HW & (np.arange(mask_HW.shape[1])[None] < np.median(np.flatnonzero(mask_HW.any(0))))
        mine_HW[mask_HW] = len(found) + 1
        found[len(found) + 1] = {"category_id": category, "iscrowd": 0}
    top, left = (int(rng.integers(0, side - 40)) for side in ids_HW.shape)
    mine_HW[top : top + 40, left : left + 40] = len(found) + 1
    found[len(found) + 1] = {"category_id": int(rng.choice(categories)), "iscrowd": 0}
    return mine_HW, {number: label for number, label in found.items() if (mine_HW == number).any()}


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality_is_that_of_the_panoptic_api_on_the_sample_pack(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [(*true, *disturbed(rng, *true)) for true in packed("val")]

    ours = quality([answer_of(*one[2:]) for one in images], [answer_of(*one[:2]) for one in images])

    assert ours == pytest.approx(reference_quality(images), abs=1e-12)
    assert 0 < ours[0] < 1


def test_the_truth_itself_has_full_quality_and_its_crowds_cost_nothing() -> None:
    truth = packed("val")
    assert any(label["iscrowd"] for _, labels in truth for label in labels.values())
    whole = [answer_of(*true) for true in truth]
    without = [answer(*(one for one in true.said if not one.crowd)) for true in whole]

    assert quality(without, whole) == (1.0, 1.0, 1.0)
    assert quality(whole, whole) == (1.0, 1.0, 1.0)  # who predicts a crowd as one segment is not punished


def test_a_prediction_on_unlabelled_pixels_is_neither_right_nor_wrong() -> None:
    truth = answer(said("cat", (0, 3)))

    aside = match_segments(answer(said("cat", (0, 3)), said("dog", (5, 9))), truth)
    within = match_segments(answer(said("cat", (0, 1)), said("dog", (2, 3))), truth)

    assert (aside.spurious, aside.ignored) == ((), (1,))
    assert (within.spurious, within.ignored) == ((0, 1), ())


def test_unlabelled_pixels_are_in_no_union() -> None:
    mine, true = answer(said("cat", (2, 9))), answer(said("cat", (0, 3)), said("dog", (4, 5)))

    # rows 2 and 3 are shared; rows 4 and 5 are the dog's; rows 6 to 9 are nobody's: 2 / (4 + 4 - 2)
    assert segment_ious(shared_pixels(mine, true)).tolist() == [[pytest.approx(2 / 6)], [pytest.approx(2 / 4)]]


def test_who_says_nothing_has_missed_everything() -> None:
    truth = answer(said("cat", (0, 3), "a cat"), said("cat", (4, 5), crowd=True))

    assert match_segments(answer(), truth) == Matched(pairs=(), spurious=(), missed=(0,))
    assert set(score_segments([answer()], [truth], TOOLS).values()) == {0.0}


# ----------------------------------------------------------------------------------------------------------- captions


def test_captions_of_matched_segments_are_multiplied_by_their_share_of_all() -> None:
    words = "a small red cat lies on the left of a dog"
    truth = answer(said("cat", (0, 3), words), said("dog", (4, 6), "a brown dog"), said("tree", (7, 8), "one tree"))
    mine = answer(said("cat", (0, 3), words), said("dog", (7, 8), "a brown dog"))

    scores = score_segments([mine], [truth], TOOLS)

    # one match; the dog is missed and spurious, the tree is missed: 1 of 4
    assert scores["exact"] == pytest.approx(1 / 4)
    assert scores["bleu4"] == pytest.approx(1 / 4)
    assert scores["rouge_l"] == pytest.approx(1 / 4)
    assert scores["pq"] == pytest.approx(1 / 3)


def test_all_scores_of_the_question_are_computed_and_explained() -> None:
    benchmark, question = BENCHMARKS["panoptic"], QUESTIONS["panoptic"]
    truth = answer(said("cat", (0, 3), "a cat"))

    assert tuple(score_segments([truth], [truth], TOOLS)) == question.scores == tuple(benchmark.meanings)
    assert benchmark.ability.__name__ == question.ability


# ---------------------------------------------------------------------------------------------------------------- mAP


def test_strictly_the_surest_prediction_comes_first() -> None:
    truth = answer(said("cat", (0, 3), "a red cat"), said("dog", (6, 9), "a brown dog"))
    cat, dog = said("cat", (0, 3), "a red cat", score=0.6), said("dog", (6, 9), "nothing at all", score=0.9)
    ious = [segment_ious(shared_pixels(answer(cat, dog), truth))]

    # wrong at every bar, then right: precision 1/2 up to recall 1/2 (51 of 101 recalls)
    assert caption_map([answer(cat, dog)], [truth], ious, [()]) == pytest.approx(51 * 0.5 / 101)
    assert caption_map([answer(cat, replace(dog, score=0.1))], [truth], ious, [()]) == pytest.approx(51 / 101)
    assert caption_map([answer(cat, replace(dog, phrase="a brown dog"))], [truth], ious, [()]) == pytest.approx(1.0)


def test_a_prediction_of_another_class_is_wrong_unless_it_is_ignored() -> None:
    truth = answer(said("cat", (0, 3), "a cat"))
    mine = answer(said("dog", (0, 3), "a cat", score=0.9), said("cat", (0, 3), "a cat", score=0.8))
    ious = [np.array([[1.0, 1.0]])]

    assert caption_map([mine], [truth], ious, [()]) == pytest.approx(0.5)
    assert caption_map([mine], [truth], ious, [(0,)]) == pytest.approx(1.0)


def test_strictly_no_crowd_is_to_be_found() -> None:
    truth = answer(said("cat", (0, 3), "a cat"), said("cat", (4, 6), crowd=True))
    ious = [np.array([[1.0], [0.0]])]

    assert caption_map([answer(said("cat", (0, 3), "a cat", score=0.9))], [truth], ious, [()]) == pytest.approx(1.0)


def test_the_released_map_reads_predictions_letter_by_letter() -> None:
    truth = answer(said("cat", (0, 3), "a cat"))
    ious = [np.array([[1.0]])]

    assert caption_map_compat([answer(said("cat", (0, 3), "a cat"))], [truth], ious) == pytest.approx(1.0)
    assert caption_map_compat([answer(said("cat", (0, 3), "the dog"))], [truth], ious) == 0.0  # no letter is a word
    assert caption_map_compat([answer(said("cat", (0, 3), "papaya"))], [truth], ious) == pytest.approx(1.0)
    assert caption_map([answer(said("cat", (0, 3), "papaya", score=0.5))], [truth], ious, [()]) == 0.0


def test_the_released_map_wants_crowds_to_be_found_too() -> None:
    truth = answer(said("cat", (0, 3), "a cat"), said("cat", (4, 6), crowd=True))
    ious = [np.array([[1.0], [0.0]])]

    assert caption_map_compat([answer(said("cat", (0, 3), "a"))], [truth], ious) == pytest.approx(51 / 101)


# ----------------------------------------------------------------------------------------------------------- questions


class Seer:
    """Segments every picture as one thing, of a size of its own choice."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size

    def segment(self, images: list[Any], *, max_new_tokens: int) -> list[tuple[DescribedSegment, ...]]:
        del max_new_tokens
        mask_HW = np.ones(self._size, dtype=np.bool_)
        return [
            (DescribedSegment(mask_HW=mask_HW, category="bar", category_id=1, is_thing=True, score=0.75, caption="a"),)
            for _ in images
        ]


def test_segments_are_asked_for_and_read() -> None:
    sample = scene(3)
    reference = read_segments(sample)
    assert reference is not None
    image = decode_image(sample.image)

    (told,) = ask_segments(Seer((image.height, image.width)), [image], [reference], 9)

    assert [(one.category, one.phrase, one.score) for one in told.said] == [("bar", "a", 0.75)]
    assert [one.phrase for one in reference.said] == [region.caption for region in sample.regions]
    with pytest.raises(StageFailed, match="the mask of 'bar' has 3 x 4 pixels"):
        ask_segments(Seer((3, 4)), [image], [reference], 9)


def test_a_picture_names_the_class_of_a_segment_before_its_caption() -> None:
    panel = panel_of("Trained", answer(said("cat", (0, 3), "a red one"), said("dog", (4, 6))))

    assert [mark.phrase for mark in panel.marks] == ["cat: a red one", "dog"]


def test_a_sample_without_masks_is_no_question() -> None:
    sample = scene(3)
    bare = replace(sample, regions=tuple(replace(region, mask=None) for region in sample.regions))
    crowds = replace(sample, regions=tuple(replace(region, crowd=True) for region in sample.regions))

    assert read_segments(bare) is None
    assert read_segments(crowds) is None


def test_answers_are_written_in_cocos_layout_and_read_back(tmp_path: Path) -> None:
    truth = answer(said("cat", (0, 3), "a cat"), said("dog", (6, 9)))
    mine = answer(said("dog", (5, 9), "a dog", score=0.5), said("cat", (0, 2), "a cat", score=0.9))
    categories = [{"id": 17, "name": "cat", "thing": True}, {"id": 201, "name": "dog", "thing": False}]

    write_panoptic([("one", mine, truth), ("two", answer(), truth)], categories, tmp_path)

    plain = json.loads((tmp_path / "panoptic.json").read_text(encoding="utf-8"))
    first, second = plain["annotations"]
    ids_HW = panoptic_ids((tmp_path / "panoptic" / first["file_name"]).read_bytes())
    assert [(one["category_id"], one["caption"], one["area"], one["bbox"]) for one in first["segments_info"]] == [
        (201, "a dog", 50, [0, 5, 10, 5]),
        (17, "a cat", 30, [0, 0, 10, 3]),
    ]
    assert [int((ids_HW == one["id"]).sum()) for one in first["segments_info"]] == [50, 30]
    assert second["segments_info"] == []
    assert not panoptic_ids((tmp_path / "panoptic" / second["file_name"]).read_bytes()).any()
    assert plain["categories"][1] == {"id": 201, "name": "dog", "isthing": 0}
