"""Accidents on a real Slurm, each compared with an undisturbed run: the quick ones here, all in test-long."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slurm.devcluster import surroundings
from slurm.drill.scenarios import SCENARIOS

REPOSITORY = Path(__file__).parents[3]
QUICK = [scenario.name for scenario in SCENARIOS if scenario.quick]
ALL = [scenario.name for scenario in SCENARIOS]


def drill(*arguments: str) -> dict[str, Any]:
    """Runs `orch drill` to its end and reads its JSON; skips where there can be no cluster."""
    if missing := surroundings.lacking():
        pytest.skip("; ".join(missing))
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "drill", *arguments, "--json"], text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=False,
    )  # fmt: skip
    assert done.returncode in {0, 1}, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def failures(drilled: dict[str, Any]) -> dict[str, list[str]]:
    return {one["scenario"]: one["problems"] for one in drilled["scenarios"] if not one["passed"]}


@pytest.mark.slow
@pytest.mark.needs("torch")
@pytest.mark.timeout(900)
def test_the_quick_accidents_lose_nothing() -> None:
    drilled = drill("--quick")

    assert [one["scenario"] for one in drilled["scenarios"]] == QUICK
    assert failures(drilled) == {}


@pytest.mark.long
@pytest.mark.needs("torch")
@pytest.mark.timeout(3600)
def test_no_accident_loses_anything() -> None:
    drilled = drill()

    assert [one["scenario"] for one in drilled["scenarios"]] == ALL
    assert failures(drilled) == {}


def test_an_unknown_scenario_is_a_mistake_of_the_user() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "drill", "rank_kiled"], text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=False, timeout=60,
    )  # fmt: skip

    assert done.returncode == 2
    assert "rank_killed" in done.stderr


def test_the_scenarios_can_be_listed_without_a_cluster() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "drill", "--list", "--json"], text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": "/nowhere"}, check=False, timeout=60,
    )  # fmt: skip

    assert done.returncode == 0
    assert [one["name"] for one in json.loads(done.stdout)] == ALL
