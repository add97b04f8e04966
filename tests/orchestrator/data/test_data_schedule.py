"""Whose turn it is."""

from collections import Counter
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.schedule import Schedule

WEIGHTS = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(1e-4, 1e4), min_size=1, max_size=8)


def shares(weights: dict[str, float]) -> dict[str, Fraction]:
    total = sum(Fraction(str(weight)) for weight in weights.values())
    return {name: Fraction(str(weight)) / total for name, weight in weights.items()}


@given(WEIGHTS, st.integers(0, 10**15))
@settings(max_examples=300, deadline=None)
def test_at_any_step_no_source_is_two_turns_away_from_its_share(weights: dict[str, float], step: int) -> None:
    schedule = Schedule(weights)

    counts, bounds = schedule.counts(step), schedule.error_bound()

    assert step == sum(counts.values())
    for name, share in shares(weights).items():
        assert abs(counts[name] - share * step) <= Fraction(bounds[name]) + Fraction(1, 10**9)
        assert bounds[name] < 2


@given(WEIGHTS, st.integers(0, 10**12))
@settings(max_examples=100, deadline=None)
def test_the_turns_counted_one_by_one_are_the_turns_counted_at_once(weights: dict[str, float], start: int) -> None:
    schedule = Schedule(weights)
    counts = Counter(schedule.counts(start))

    for step in range(start, start + 40):
        name, before = schedule.turn(step)
        assert counts[name] == before
        counts[name] += 1

    assert dict(counts) == schedule.counts(start + 40)


def test_two_sources_are_never_more_than_half_a_turn_away() -> None:
    assert Schedule({"a": 0.3, "b": 0.7}).error_bound() == {"a": 0.5, "b": 0.5}


def test_a_third_is_met_exactly_every_three_steps() -> None:
    schedule = Schedule({"a": 1.0, "b": 1.0, "c": 1.0})

    assert schedule.counts(3 * 10**9) == {"a": 10**9, "b": 10**9, "c": 10**9}
