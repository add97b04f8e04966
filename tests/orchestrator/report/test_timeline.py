"""Attempts over time: in order, to scale, with what ended them."""

import re
from pathlib import Path

import pytest

from orchestrator.report.gather import gather
from orchestrator.report.timeline import timeline
from orchestrator.state import Attempt
from tests.orchestrator.report.runs import CHAIN, STARTED, write_run


def attempt(number: int, start: float, end: float | None, state: str = "done", cause: str | None = None) -> Attempt:
    return Attempt(
        number=number, launcher="local", job_id="1", nodes=("here",), started=STARTED + start,
        ended=None if end is None else STARTED + end, state=state, cause=cause, detail="it broke" if cause else "",
    )  # fmt: skip


def bars(text: str) -> list[tuple[str, float, float]]:
    """Returns what each bar says, its left end and its width."""
    found = re.findall(r'<g class="try \w+"><title>(.*?)</title><rect x="([\d.]+)" y="\d+" width="([\d.]+)"', text)
    return [(words, float(left), float(width)) for words, left, width in found]


def drawn(tmp_path: Path, *attempts: Attempt) -> str:
    states = dict.fromkeys(CHAIN, "waiting") | {"gcg": "failed"}
    run = write_run(tmp_path / "bars", states, attempts={"gcg": attempts})
    return timeline(gather(run), now=STARTED + 10_000)


def test_bars_are_as_long_as_their_attempts(tmp_path: Path) -> None:
    first, second = attempt(1, 0, 100, "failed", "hang"), attempt(2, 110, 310)

    text = drawn(tmp_path, first, second)

    (one, left, width), (other, next_left, next_width) = bars(text)
    assert next_width == pytest.approx(2 * width, rel=0.01)
    assert next_left - (left + width) == pytest.approx(width / 10, abs=0.2)
    assert (one, other) == ("attempt 1: failed, 1 min 40 s, hang: it broke", "attempt 2: done, 3 min 20 s")
    assert ">✗ hang</text>" in text


def test_a_weekend_without_an_attempt_is_cut_out_and_said_to_be(tmp_path: Path) -> None:
    text = drawn(tmp_path, attempt(1, 0, 100, "failed", "hang"), attempt(2, 200_000, 200_100))

    (_, _, width), (_, _, next_width) = bars(text)
    assert width == pytest.approx(next_width)
    assert width > 300
    assert "55 h 31 min without an attempt" in text


def test_many_gaps_leave_room_for_the_bars(tmp_path: Path) -> None:
    text = drawn(tmp_path, *(attempt(n, 5000 * n, 5000 * n + 10, "failed", "hang") for n in range(1, 60)))

    assert len(bars(text)) == 59
    assert all(left >= 150 and left + width <= 1042 for _, left, width in bars(text))


def test_an_attempt_that_goes_on_reaches_to_now(tmp_path: Path) -> None:
    text = drawn(tmp_path, attempt(1, 9_000, 9_900, "failed", "hang"), attempt(2, 9_900, None, "failed"))

    _, (words, left, width) = bars(text)
    assert words == "attempt 2: failed, 1 min 40 s"
    assert left + width == pytest.approx(1030, abs=1)
