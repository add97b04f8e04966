"""Dense captions are matched as DenseCap's script does it, and strictly; hand-worked cases."""

import numpy as np
import pytest

from stages.evaluate.answers import Answer, Said
from stages.evaluate.benchmark import Tools
from stages.evaluate.caption_scorers import open_caption_scorer
from stages.evaluate.dense_captions import (
    IOUS,
    METEORS,
    Found,
    average_precision,
    grid_precision,
    merged,
    score_dense,
)
from stages.evaluate.likeness import open_likeness

TOOLS = Tools(captions=open_caption_scorer("plain"), likeness=open_likeness(None))
CELLS = len(IOUS) * len(METEORS)


def answer(*said: tuple[str, tuple[float, float, float, float], float | None]) -> Answer:
    return Answer(caption="", said=tuple(Said(phrase=text, box_xyxy_px=box, score=score) for text, box, score in said))


def test_average_precision_of_a_hit_then_a_miss_then_a_hit() -> None:
    # recalls 1/2 and 1 with precisions 1 and 2/3; of 101 points those up to 0.5 see 1, the 50 others 2/3
    expected = (51 * 1 + 50 * 2 / 3) / 101

    assert average_precision(np.array([True, False, True]), 2, points=101) == pytest.approx(expected)


def test_what_nobody_finds_counts_as_nothing() -> None:
    assert average_precision(np.array([], dtype=bool), 3, points=101) == 0.0
    assert average_precision(np.array([True]), 2, points=3) == pytest.approx(2 / 3)  # recalls 0 and 0.5, but never 1


def test_a_perfect_answer_is_right_at_every_threshold_in_both_modes() -> None:
    images = [([Found(score=0.9, overlaps=(1.0,), meteors=(1.0,))], 1)]

    assert grid_precision(images, compat=True) == 1.0
    assert grid_precision(images, compat=False) == 1.0


def test_an_iou_counts_from_its_threshold_on_and_a_meteor_only_above_it() -> None:
    images = [([Found(score=0.9, overlaps=(0.5,), meteors=(0.1,))], 1)]

    # IoU 0.5 fits 0.3, 0.4, 0.5; METEOR 0.1 is above 0 and 0.05 alone
    assert grid_precision(images, compat=False) == pytest.approx(3 * 2 / CELLS)
    assert grid_precision(images, compat=True) == pytest.approx(3 * 2 / CELLS)


def test_compat_gives_a_box_to_the_truth_that_it_overlaps_most_even_if_that_is_taken() -> None:
    first = Found(score=0.9, overlaps=(0.9, 0.7), meteors=(1.0, 1.0))
    second = Found(score=0.8, overlaps=(0.8, 0.75), meteors=(1.0, 1.0))

    # strict: the second one takes the other truth; compat: it comes late, and one of two truths stays unfound
    assert grid_precision([([first, second], 2)], compat=False) == 1.0
    assert grid_precision([([first, second], 2)], compat=True) == pytest.approx(0.5, abs=0.011)


def test_compat_lets_a_wrong_text_take_its_place() -> None:
    wrong = Found(score=0.9, overlaps=(1.0,), meteors=(0.0,))
    right = Found(score=0.8, overlaps=(1.0,), meteors=(1.0,))

    assert grid_precision([([wrong, right], 1)], compat=True) == 0.0
    assert grid_precision([([wrong, right], 1)], compat=False) == pytest.approx(0.5)


def test_boxes_that_overlap_become_their_mean_with_all_texts() -> None:
    boxes = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 8.0), (30.0, 0.0, 40.0, 10.0)]

    found, texts = merged(boxes, [("a dog",), ("a pet",), ("a tree",)])

    assert found == [(0.0, 0.0, 10.0, 9.0), (30.0, 0.0, 40.0, 10.0)]
    assert texts == [("a dog", "a pet"), ("a tree",)]


def test_scores_of_answers_with_places_and_words() -> None:
    truth = answer(("a red dog runs", (0, 0, 10, 10), None), ("two green trees stand", (20, 0, 40, 10), None))
    said = answer(("a red dog runs", (0, 0, 10, 10), 0.9), ("nothing alike here", (20, 0, 40, 10), 0.8))

    found = score_dense([said], [truth], TOOLS)

    assert found["recall50"] == 1.0
    # one of two truths at every threshold, first of all: half of the recall points see precision 1
    assert found["map_strict"] == pytest.approx(51 / 101)
    assert found["map"] == pytest.approx(50 / 100)


def test_a_model_that_finds_nothing_scores_nothing() -> None:
    truth = answer(("a red dog", (0, 0, 10, 10), None))

    assert score_dense([answer()], [truth], TOOLS) == {"map": 0.0, "map_strict": 0.0, "recall50": 0.0}
