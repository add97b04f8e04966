"""Launches of real processes, told to a real MLflow: what it knows after kills that nobody could announce."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.tracking.ledger import read_ledger
from tests.command_line import Orch
from tests.waiting import until

PATIENCE_S = 90.0
STAGES = {
    "first": {"stage": "count", "config": {"steps": 60, "save_every": 5, "pause_s": 0.05}},
    "sum": {"stage": "add", "inputs": {"value": "first.value"}},
}


@pytest.fixture
def recipe(tmp_path: Path) -> tuple[Orch, Path]:
    """Writes a recipe that is tracked in a database beside it."""
    orch = Orch(tmp_path)
    return orch, orch.recipe(STAGES, tracking={"uri": "sqlite:///mlflow.db"})


def told(orch: Orch, stage: str = "") -> Any:
    run_id = read_ledger(orch.run_folder / stage)["mlflow_run_id"]
    return MlflowClient(tracking_uri=f"sqlite:///{orch.folder / 'mlflow.db'}").get_run(run_id)


def curve(orch: Orch) -> list[int]:
    client = MlflowClient(tracking_uri=f"sqlite:///{orch.folder / 'mlflow.db'}")
    return sorted(point.step for point in client.get_metric_history(told(orch, "first").info.run_id, "loss"))


def status(orch: Orch, stage: str = "") -> str | None:
    return read_ledger(orch.run_folder / stage).get("status")


def some_steps(orch: Orch) -> Callable[[], bool]:
    return (orch.run_folder / "first" / "checkpoints" / "step_00000010").exists


@pytest.mark.slow
def test_a_stage_that_was_killed_and_resumed_is_one_run_with_one_curve(recipe: tuple[Orch, Path]) -> None:
    orch, path = recipe
    orch("launch", path, "retry.attempts=1", "--detach")
    until(some_steps(orch), PATIENCE_S, what="ten steps are saved")
    os.kill(int((orch.run_folder / "first" / "pid").read_text()), signal.SIGKILL)
    until(lambda: status(orch) == "KILLED", PATIENCE_S, what="MLflow hears of the kill")
    killed = told(orch, "first")

    orch("resume", "toy")
    orch("sync", "toy")

    finished = told(orch, "first")
    assert (killed.info.status, finished.info.status, told(orch).info.status) == ("KILLED", "FINISHED", "FINISHED")
    assert killed.info.run_id == finished.info.run_id
    assert curve(orch) == list(range(1, 61))
    assert finished.data.tags["orch.attempts"] == "2"
    assert "SIGKILL" in killed.data.tags["orch.evidence"]
    assert killed.data.tags["orch.decision"].startswith("not again: one attempt ended at step")
    assert json.loads(orch("status", "toy", "--json").stdout)["mlflow_run_id"] == told(orch).info.run_id


@pytest.mark.slow
def test_when_supervisor_and_workers_are_killed_mlflow_does_not_say_running_for_ever(
    recipe: tuple[Orch, Path],
) -> None:
    orch, path = recipe
    orch("launch", path, "stages.first.config.steps=2000", "--detach")
    until(some_steps(orch), PATIENCE_S, what="ten steps are saved")
    until(lambda: status(orch, "first") == "RUNNING", PATIENCE_S, what="MLflow hears that it runs")

    os.kill(json.loads((orch.run_folder / "launch.json").read_text())["pid"], signal.SIGKILL)
    until(lambda: status(orch) == "KILLED", PATIENCE_S, what="MLflow hears of the kill")

    assert (told(orch, "first").info.status, told(orch).info.status) == ("KILLED", "KILLED")


@pytest.mark.slow
def test_a_launch_that_reuses_everything_tells_mlflow_nothing(recipe: tuple[Orch, Path]) -> None:
    orch, path = recipe
    orch("launch", path, "stages.first.config.steps=3")
    orch("sync", "toy")
    before = [
        (run.info.status, run.info.end_time, len(run.data.tags)) for run in (told(orch, "first"), told(orch, "sum"))
    ]

    orch("launch", path, "stages.first.config.steps=3")
    orch("sync", "toy")

    after = [
        (run.info.status, run.info.end_time, len(run.data.tags)) for run in (told(orch, "first"), told(orch, "sum"))
    ]
    assert after == before
