"""Boxes of utterances are read off the trace, and given to tokens by how far along they stand."""

import pytest

from stages.samples import TimedPoint, Utterance
from stages.traces import aligned, boxes_of


def point(x: float, y: float, time_s: float) -> TimedPoint:
    return TimedPoint(word="", x_unit=x, y_unit=y, time_s=time_s)


def said(text: str, start_s: float, end_s: float) -> Utterance:
    return Utterance(text=text, start_s=start_s, end_s=end_s)


STRAIGHT = [point(0.0, 0.2, 0.0), point(1.0, 0.6, 10.0)]


def test_a_box_spans_the_trace_of_its_time_with_straight_lines_between_points() -> None:
    (box,) = boxes_of(STRAIGHT, [said("a dog", 2.0, 4.0)])

    assert box == pytest.approx((0.2, 0.28, 0.4, 0.36))


def test_times_after_the_trace_go_on_along_its_last_stretch_and_are_cut_to_the_image() -> None:
    (box,) = boxes_of(STRAIGHT, [said("beyond", 9.0, 12.0)])

    assert box == pytest.approx((0.9, 0.56, 1.0, 0.68))


def test_utterances_without_words_or_with_a_middle_outside_are_skipped() -> None:
    left = [point(-1.0, 0.5, 0.0), point(-0.5, 0.5, 1.0), point(0.5, 0.5, 2.0)]

    found = boxes_of(left, [said("off", 0.0, 1.0), said(" ", 1.5, 2.0), said("on", 1.8, 2.0)])

    assert found == [pytest.approx((0.3, 0.5, 0.5, 0.5))]


def test_a_narrative_of_one_point_has_no_places() -> None:
    assert boxes_of(STRAIGHT[:1], [said("a dog", 0.0, 1.0)]) == []


def test_points_of_one_time_do_not_divide_by_zero() -> None:
    jump = [point(0.1, 0.1, 0.0), point(0.2, 0.2, 1.0), point(0.6, 0.6, 1.0), point(0.8, 0.8, 2.0)]

    (box,) = boxes_of(jump, [said("here", 0.0, 2.0)])

    assert box == pytest.approx((0.1, 0.1, 0.8, 0.8))


@pytest.mark.parametrize(("count", "places"), [(4, [0, 1, 2, 3]), (2, [1, 3]), (8, [0, 0, 0, 1, 1, 2, 2, 3]), (0, [])])
def test_tokens_take_the_box_whose_share_of_the_way_is_nearest(count: int, places: list[int]) -> None:
    boxes = [(number / 10, 0.0, 1.0, 1.0) for number in range(4)]

    # 1/8 is as near to the first of four as 3/8 is: the earlier one wins a tie
    assert aligned(count, boxes) == [boxes[place] for place in places]


def test_without_boxes_no_token_has_a_place() -> None:
    assert aligned(3, []) == []
