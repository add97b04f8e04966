"""Where the time of attempts went: every second counted once, and nothing said that nobody recorded."""

from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.report.spent import spent_of, total

BEGIN = 1000.0


def attempt(number: int, start: float, end: float | None, state: str = "done", **given: Any) -> dict[str, Any]:
    plain = {"number": number, "started": BEGIN + start, "ended": None if end is None else BEGIN + end, "state": state,
             "from_step": None, "to_step": None, "saved_step": None, "decision": ""}  # fmt: skip
    return plain | given


def began(number: int) -> dict[str, Any]:
    return {"event": "attempt", "number": number}


def step(number: int, end: float, wait_s: float = 0.0) -> dict[str, Any]:
    return {"event": "loss", "step": number, "time": BEGIN + end, "data_wait_s": wait_s, "value": 1.0}


def used(spent: Mapping[str, float]) -> dict[str, float]:
    return {use: pytest.approx(seconds) for use, seconds in spent.items() if seconds}


def test_steps_are_useful_without_their_wait_for_data() -> None:
    events = [began(1), step(1, 10), step(2, 12, wait_s=0.5), step(3, 14, wait_s=0.5)]

    (spent,) = spent_of([attempt(1, 0, 15, from_step=0, to_step=3)], events, ready=BEGIN - 4, now=0)

    assert used(spent) == {"queue": 4, "start": 10, "useful": 3, "data": 1, "end": 1}


def test_steps_behind_the_checkpoint_that_was_gone_on_from_are_redone() -> None:
    attempts = [
        attempt(1, 0, 20, "failed", from_step=0, to_step=4, saved_step=2, decision="again: node_failure"),
        attempt(2, 26, 40, from_step=2, to_step=4),
    ]
    events = [began(1), *(step(number, 8 + 2 * number) for number in range(1, 5)),
              began(2), step(3, 36), step(4, 38)]  # fmt: skip

    first, second = spent_of(attempts, events, ready=None, now=0)

    assert used(first) == {"start": 10, "useful": 2, "redone": 4, "end": 4}
    assert used(second) == {"queue": 6, "start": 10, "useful": 2, "end": 2}


def test_a_save_counts_as_checkpoint_only_where_it_was_recorded() -> None:
    attempts = [attempt(1, 0, 20, from_step=0, to_step=3)]
    events = [began(1), step(1, 5), {"event": "saved", "step": 1, "save_s": 3.0}, step(2, 10), step(3, 12)]

    (told,) = spent_of(attempts, events, ready=None, now=0)
    (untold,) = spent_of(attempts, [event for event in events if event["event"] != "saved"], ready=None, now=0)

    assert used(told) == {"start": 5, "checkpoint": 3, "useful": 4, "end": 8}
    assert used(untold) == {"start": 5, "useful": 7, "end": 8}


def test_what_an_attempt_did_not_record_is_called_unknown() -> None:
    attempts = [attempt(1, 0, 5, "failed"), attempt(2, 6, 9), attempt(3, 10, 12, from_step=0, to_step=5),
                attempt(4, 13, 20, "failed", from_step=0, to_step=0)]  # fmt: skip

    spent = spent_of(attempts, [], ready=None, now=0)

    assert [used(one) for one in spent] == [{"unknown": 5}, {"useful": 3}, {"unknown": 2}, {"start": 7}]


def test_a_person_who_waits_before_going_on_is_no_queue() -> None:
    attempts = [attempt(1, 0, 5, "cancelled", decision="not again: cancelled"), attempt(2, 5000, 5010)]

    _, second = spent_of(attempts, [], ready=None, now=0)

    assert used(second) == {"useful": 10}


def test_a_running_attempt_counts_until_now_and_clocks_that_disagree_give_no_negative_time() -> None:
    events = [began(1), step(1, -50), step(2, -60)]

    (spent,) = spent_of([attempt(1, 0, None, "running", from_step=0)], events, ready=BEGIN + 9, now=BEGIN + 30)

    assert used(spent) == {"end": 30}
    assert all(seconds >= 0 for seconds in total([spent]).values())


def test_every_second_of_an_attempt_is_counted_once() -> None:
    events = [began(1), *(step(number, 3 + number * 0.7, wait_s=0.2) for number in range(1, 40))]

    (spent,) = spent_of(
        [attempt(1, 0, 60, "failed", from_step=0, to_step=39, saved_step=20)], events, ready=None, now=0
    )

    assert sum(spent.values()) == pytest.approx(60)
