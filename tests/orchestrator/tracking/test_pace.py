"""Looks at a run are as seldom as they are dear, and end with it."""

import threading
from collections.abc import Callable

import pytest

from orchestrator.tracking import pace
from orchestrator.tracking.pace import LONGEST_PAUSE_S, LOOK_EVERY_S, REST, keep_telling


class Hour(threading.Event):
    """A clock that goes on by what is waited for; nobody sets it."""

    now = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        return False

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def hour(monkeypatch: pytest.MonkeyPatch) -> Hour:
    clock = Hour()
    monkeypatch.setattr(pace, "time", clock)
    return clock


def pauses(hour: Hour, looks: list[tuple[float, bool]], *, is_over: Callable[[], bool] = lambda: False) -> list[float]:
    """Returns the pauses after looks that take so long and end so; it is over when there are no more, too."""
    ends, found = list[float](), list[float]()

    def tell() -> bool:
        if ends:
            found.append(hour.now - ends[-1])
        takes_s, told = looks.pop(0)
        hour.now += takes_s
        ends.append(hour.now)
        return told

    keep_telling(tell, lambda: not looks or is_over(), hour)
    return found


def test_what_costs_nothing_is_looked_at_again_soon(hour: Hour) -> None:
    assert pauses(hour, [(0.0, True)] * 4) == [LOOK_EVERY_S] * 3


def test_a_dear_look_is_rested_from_in_proportion(hour: Hour) -> None:
    found = pauses(hour, [(0.1, True)] * 6)

    assert found[-1] == pytest.approx(REST * 0.1, abs=LOOK_EVERY_S)
    assert 6 * 0.1 / hour.now < 2 / REST


def test_no_pause_is_longer_than_the_longest(hour: Hour) -> None:
    assert pauses(hour, [(20.0, True)] * 9)[-1] == LONGEST_PAUSE_S


def test_one_slow_look_as_the_first_silences_nobody_for_long(hour: Hour) -> None:
    assert pauses(hour, [(20.0, True), (0.0, True), (0.0, True)]) == [2 * LOOK_EVERY_S, LOOK_EVERY_S]


def test_who_cannot_tell_tries_less_and_less_often_and_is_quick_again_once_he_can(hour: Hour) -> None:
    found = pauses(hour, [(0.0, False)] * 6 + [(0.0, True)] * 2)

    assert found == [2, 4, 8, 16, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LOOK_EVERY_S]


def test_the_end_of_a_run_ends_the_longest_pause(hour: Hour) -> None:
    looks = [(0.0, False)] * 9

    pauses(hour, looks, is_over=lambda: hour.now >= 20)

    assert hour.now <= 20 + LOOK_EVERY_S
