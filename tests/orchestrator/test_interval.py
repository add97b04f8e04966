"""How often to save: against the published formula, and against a simulation of failures."""

import math
import random

import pytest

from orchestrator.interval import best_interval_s, expected_goodput, job_mtbf_s


def simulated_goodput(save_s: float, mtbf_s: float, restart_s: float, interval_s: float, *, segments: int) -> float:
    """Plays failures at random moments; a restart can fail too."""
    chance = random.Random(7)
    wall_s = 0.0
    for _ in range(segments):
        while (failure_s := chance.expovariate(1 / mtbf_s)) < interval_s + save_s:
            wall_s += failure_s
            while (again_s := chance.expovariate(1 / mtbf_s)) < restart_s:
                wall_s += again_s
            wall_s += restart_s
        wall_s += interval_s + save_s
    return segments * interval_s / wall_s


def test_the_interval_is_youngs_where_saves_are_short_and_never_longer_than_the_time_between_failures() -> None:
    assert best_interval_s(1.0, 1e6) == pytest.approx(math.sqrt(2e6), rel=1e-2)
    assert best_interval_s(500.0, 200.0) == 200.0
    assert best_interval_s(10.0, math.inf) == math.inf


def test_the_interval_agrees_with_dalys_worked_value() -> None:
    save_s, mtbf_s = 300.0, 86_400.0
    ratio = save_s / (2 * mtbf_s)

    expected = math.sqrt(2 * save_s * mtbf_s) * (1 + ratio**0.5 / 3 + ratio / 9) - save_s

    assert best_interval_s(save_s, mtbf_s) == pytest.approx(expected)


@pytest.mark.parametrize(("save_s", "mtbf_s", "restart_s"), [(20, 3600, 120), (60, 1800, 300), (5, 40_000, 600)])
def test_no_other_interval_keeps_more_of_the_time(save_s: float, mtbf_s: float, restart_s: float) -> None:
    best = best_interval_s(save_s, mtbf_s)
    kept = expected_goodput(save_s, mtbf_s, restart_s)

    for factor in (0.25, 0.5, 0.8, 1.25, 2, 4):
        assert expected_goodput(save_s, mtbf_s, restart_s, best * factor) < kept


@pytest.mark.parametrize(("save_s", "mtbf_s", "restart_s"), [(20, 3600, 120), (60, 1800, 300), (5, 40_000, 600)])
def test_goodput_is_what_a_simulation_of_failures_keeps(save_s: float, mtbf_s: float, restart_s: float) -> None:
    interval_s = best_interval_s(save_s, mtbf_s)

    simulated = simulated_goodput(save_s, mtbf_s, restart_s, interval_s, segments=20_000)

    assert expected_goodput(save_s, mtbf_s, restart_s) == pytest.approx(simulated, rel=0.01)


def test_goodput_at_the_ends_of_what_can_be() -> None:
    assert expected_goodput(10, math.inf, 60, 90) == pytest.approx(0.9)
    assert expected_goodput(10, math.inf, 60) == 1.0
    assert expected_goodput(0, 1000, 100) == pytest.approx(math.exp(-0.1))
    assert expected_goodput(1, 1, 1e9) < 1e-200
    assert expected_goodput(1e6, 1, 1) < 1e-6


def test_more_nodes_fail_more_often() -> None:
    assert job_mtbf_s(10_000, 100) == 360_000


@pytest.mark.parametrize(("save_s", "mtbf_s"), [(-1, 10), (1, 0), (1, -5), (math.nan, 1)])
def test_times_that_cannot_be_are_refused(save_s: float, mtbf_s: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        best_interval_s(save_s, mtbf_s)
