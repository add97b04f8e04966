"""Whose turn it is."""

import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.schedule import LONGEST_PERIOD, Schedule
from orchestrator.errors import InputError

NAMES = st.sampled_from("abcdefgh")
WEIGHTS = st.dictionaries(NAMES, st.integers(1, 60).map(float) | st.integers(1, 999).map(lambda n: n / 100), min_size=1)
CAPS = st.dictionaries(NAMES, st.integers(1, 40), max_size=6)


def shares(weights: dict[str, float]) -> dict[str, Fraction]:
    total = sum(Fraction(str(weight)) for weight in weights.values())
    return {name: Fraction(str(weight)) / total for name, weight in weights.items()}


def first(schedule: Schedule, steps: int, start: int = 0) -> list[str]:
    who, _ = schedule.turns(np.arange(start, start + steps))
    return [schedule.names[i] for i in who.tolist()]


@given(WEIGHTS, st.integers(0, 10**15))
@settings(max_examples=300, deadline=None)
def test_at_any_step_no_source_is_a_turn_away_from_its_share(weights: dict[str, float], step: int) -> None:
    schedule = Schedule(weights)

    counts, bounds = schedule.counts(step), schedule.error_bound()

    assert step == sum(counts.values())
    tijdeman = 1 - Fraction(1, max(2, 2 * len(weights) - 2))
    for name, share in shares(weights).items():
        assert abs(counts[name] - share * step) <= Fraction(bounds[name]) + Fraction(1, 10**9)
        assert bounds[name] <= tijdeman + Fraction(1, 10**9)


@given(WEIGHTS)
@settings(max_examples=50, deadline=None)
def test_the_bound_is_the_largest_error_that_occurs(weights: dict[str, float]) -> None:
    schedule, share = Schedule(weights), shares(weights)
    period = int(np.lcm.reduce([value.denominator for value in share.values()]))
    if period > 5000:
        return

    worst = dict.fromkeys(weights, Fraction(0))
    counts = Counter[str]()
    for step, name in enumerate(first(schedule, period), start=1):
        counts[name] += 1
        worst = {name: max(worst[name], abs(counts[name] - share[name] * step)) for name in worst}

    assert {name: pytest.approx(float(error)) for name, error in worst.items()} == schedule.error_bound()


@given(WEIGHTS, CAPS, st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_the_turns_counted_one_by_one_are_the_turns_counted_at_once(
    weights: dict[str, float], caps: dict[str, int], start: int
) -> None:
    schedule = Schedule(weights, caps)
    start = start if schedule.end is None else min(start, schedule.end)
    steps = 40 if schedule.end is None else min(40, schedule.end - start)
    counts = Counter(schedule.counts(start))

    for step in range(start, start + steps):
        name, before = schedule.turn(step)
        assert counts[name] == before
        counts[name] += 1

    assert schedule.counts(start + steps) == {name: counts[name] for name in schedule.names}


@given(WEIGHTS, CAPS)
@settings(max_examples=100, deadline=None)
def test_a_source_has_exactly_as_many_turns_as_its_cap_and_the_others_share_the_rest(
    weights: dict[str, float], caps: dict[str, int]
) -> None:
    schedule = Schedule(weights, caps)
    steps = 2000 if schedule.end is None else schedule.end

    turns = first(schedule, steps)

    counts, last_of_cap = Counter(turns), 0
    for name in weights.keys() & caps.keys():
        assert counts[name] <= caps[name]
        if schedule.end is not None:
            assert counts[name] == caps[name]
        if counts[name] == caps[name] > 0:
            last_of_cap = max(last_of_cap, steps - turns[::-1].index(name))
    free = {name: weight for name, weight in weights.items() if counts[name] < caps.get(name, steps + 1)}
    for name, share in shares(free).items():
        after = turns[last_of_cap:]
        assert abs(after.count(name) - share * len(after)) < 1


def test_all_caps_together_end_the_turns_and_a_turn_beyond_is_refused() -> None:
    schedule = Schedule({"a": 2, "b": 1}, {"a": 3, "b": 4})

    assert schedule.end == 7
    assert Counter(first(schedule, 7)) == {"a": 3, "b": 4}
    with pytest.raises(InputError, match="turn 7 is asked for, but all sources have reached their caps after 7"):
        schedule.turn(7)


def test_two_sources_are_never_more_than_half_a_turn_away() -> None:
    assert Schedule({"a": 0.3, "b": 0.7}).error_bound() == {"a": 0.5, "b": 0.5}


def test_a_third_is_met_exactly_every_three_steps() -> None:
    schedule = Schedule({"a": 1.0, "b": 1.0, "c": 1.0})

    assert schedule.counts(3 * 10**9) == {"a": 10**9, "b": 10**9, "c": 10**9}


def test_weights_without_a_short_period_are_rounded_and_the_bound_says_how_far_they_drift() -> None:
    weights = {"a": 1.0, "b": 1 / 3, "c": 0.123456789, "rare": 1e-9}
    started = time.perf_counter()

    schedule = Schedule(weights)

    took = time.perf_counter() - started
    for steps in (10, 10**6, 10**9):
        bounds = schedule.error_bound(steps)
        for name, share in shares(weights).items():
            assert abs(schedule.counts(steps)[name] - share * steps) <= bounds[name] + 1e-6
    assert max(schedule.error_bound(LONGEST_PERIOD).values()) < 3
    assert schedule.counts(10**9)["rare"] >= 10**9 // LONGEST_PERIOD
    assert took < 30  # generous: it takes about 0.5 s


def test_usual_weights_are_laid_out_at_once() -> None:
    started = time.perf_counter()

    Schedule({f"source {i}": round(0.01 + i / 100, 2) for i in range(30)})

    assert time.perf_counter() - started < 5  # generous: it takes about 0.005 s
