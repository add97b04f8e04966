"""Curves and graphs as SVG: nothing lost, nothing bent."""

import re
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.report.chain import Node, chain_graph
from orchestrator.report.charts import MOST_POINTS, PLANE, Line, line_chart, smoothed, thinned, ticks
from orchestrator.report.curves import limit_for
from orchestrator.report.text import shown

NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=32)


def chart(*points: tuple[float, float]) -> str:
    return line_chart([Line(name="loss", points=points)], x_name="step", y_name="loss", title="Loss of a")


def test_a_curve_goes_down_where_values_fall() -> None:
    text = chart((1, 4.0), (2, 3.0), (3, 2.0))

    heights = [float(pair.split(",")[1]) for pair in re.findall(r'points="([^"]+)"', text)[0].split()]
    assert heights == sorted(heights)
    assert 0 <= heights[0] < heights[-1] <= PLANE
    assert "Loss of a: loss from 4 at 1 to 2 at 3" in text


def test_a_wide_range_is_shown_on_a_log_scale_and_says_so() -> None:
    assert "(log scale)" in chart((1, 100.0), (2, 0.1))
    assert "(log scale)" not in chart((1, 100.0), (2, -0.1))


def test_no_points_no_chart_and_one_point_a_dot() -> None:
    assert chart() == ""
    assert chart((1, float("nan"))) == ""
    assert re.search(r'<polyline class="curve c0 dot" points="0,([\d.]+) 0,\1"', chart((5, 1.0)))


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=20))
def test_any_numbers_give_a_drawing_without_nan(points: list[tuple[float, float]]) -> None:
    text = chart(*sorted(points, key=str))

    assert not re.search(r'="[^"]*\b(nan|inf)', text)


def test_thinning_keeps_the_ends_and_every_peak() -> None:
    points = [(float(x), 50.0 if x == 7777 else 1.0) for x in range(100_000)]

    kept = thinned(points)

    assert len(kept) <= MOST_POINTS
    assert (7777.0, 50.0) in kept
    assert (kept[0], kept[-1]) == (points[0], points[-1])


def test_a_drawing_says_what_it_leaves_out() -> None:
    text = chart(*((float(x), float(x)) for x in range(10_000)), (10_000.0, float("nan")))

    assert (
        "Of 10,000 points, the lowest and the highest of each of 4,000 groups are drawn; 1 value is not finite" in text
    )
    assert "honest" not in chart((1, 1.0), (2, 2.0))


def test_curves_share_the_room_of_a_page_and_short_ones_stay_whole() -> None:
    assert limit_for([10, 20, 100_000, 100_000], budget=5030) == 2500
    assert limit_for([10, 20], budget=5030) == MOST_POINTS
    assert limit_for([], budget=5030) == MOST_POINTS


def test_smoothing_leaves_a_straight_line_straight() -> None:
    points = [(float(x), 2.0 * x) for x in range(100)]

    assert smoothed(points, share=0.2) == points


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(3, 3, 5) == [3]


def test_labels_are_short() -> None:
    assert [shown(value) for value in (0, 0.25, 1200, 0.0003, 2.5e6)] == ["0", "0.25", "1200", "3e-4", "2.5e6"]


def node(name: str, *parents: str, state: str = "done") -> Node:
    return Node(name=name, key="k", state=state, parents=parents)


def top_of(text: str, name: str) -> int:
    found = re.search(rf'href="#stage-{name}".*?<rect x="-?\d+" y="(\d+)"', text)
    assert found is not None
    return int(found[1])


def test_a_stage_stands_below_all_that_it_reads() -> None:
    text = chain_graph([node("data"), node("align", "data"), node("score", "align", "data"), node("other")])

    assert top_of(text, "data") == top_of(text, "other") < top_of(text, "align") < top_of(text, "score")


def test_no_two_stages_overlap() -> None:
    nodes = [node("a"), *(node(f"b{n}", "a") for n in range(5)), *(node(f"c{n}", "a", f"b{n}") for n in range(5))]

    text = chain_graph(nodes)

    boxes = [(int(x), int(y)) for x, y in re.findall(r'<rect x="(-?\d+)" y="(\d+)"', text)]
    assert len(boxes) == 11
    assert all(
        abs(x0 - x1) >= 176 or y0 != y1
        for number, (x0, y0) in enumerate(boxes) for x1, y1 in boxes[number + 1 :]
    )  # fmt: skip


def test_an_edge_to_each_parent_ends_in_one_arrow_each() -> None:
    text = chain_graph([node("a"), node("b", "a"), node("c", "a", "b"), node("d", "gone", state="failed")])

    assert text.count('class="head"') == 3
    assert "c (k): done, after a, b" in text
    assert "✗" in text


def test_a_hundred_stages_in_a_row_are_drawn() -> None:
    nodes = [node("s0"), *(node(f"s{n}", f"s{n - 1}", "s0") for n in range(1, 100))]

    assert chain_graph(nodes).count("<rect") == 100


def test_a_thousand_stages_with_long_edges_are_drawn_in_seconds() -> None:
    nodes = [node("s0"), *(node(f"s{n}", f"s{n - 1}", "s0", f"s{n // 2}") for n in range(1, 1000))]
    started = time.monotonic()

    text = chain_graph(nodes)

    assert text.count("<rect") == 1000
    assert time.monotonic() - started < 10
