"""Ranks that hang, die or dawdle in the middle of a real training: found, named, gone on from."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.status import read_status
from tests.command_line import Orch
from tests.toys import curve

pytestmark = [pytest.mark.needs("torch"), pytest.mark.slow]

THREE = {"tasks_per_node": 3}
QUICK = {"retry": {"delay_s": 0.1}, "watch": {"step_s": 3.0, "factor": 20.0}}


def launch(orch: Orch, **config: Any) -> list[dict[str, Any]]:
    stages = {"first": {"stage": "train", "config": config, "resources": THREE}}
    orch("launch", orch.recipe(stages, **QUICK), "--detach")
    orch.wait(orch.over, seconds=300)
    attempts: list[dict[str, Any]] = orch.stage("first")["attempts"]
    return attempts


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def slowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training in which nothing happens, but that rank 2 takes its time to make a batch."""
    orch = Orch(tmp_path_factory.mktemp("slowed"), catalog="tests.toytraining")
    launch(orch, log_every=2, slow={"2": 0.15})
    return orch.run_folder / "first"


@pytest.fixture
def training(tmp_path: Path) -> Orch:
    return Orch(tmp_path, catalog="tests.toytraining")


def test_a_slow_rank_is_reported_with_its_node_and_only_that_one(slowed: Path) -> None:
    found = events(slowed, "straggler")
    notes = read_status(slowed.parent)["notes"]

    assert [event["rank"] for event in found] == [2]
    assert found[0]["wait_s"] > 0.15
    assert found[0]["node"]
    assert notes[0].startswith("first: rank 2 (")


@pytest.mark.timeout(400)
def test_a_training_in_which_ranks_hang_and_die_ends_like_an_undisturbed_one(training: Orch, slowed: Path) -> None:
    attempts = launch(training, accidents={"4.1": "stop", "7.2": "kill", "10.0": "sleep"})
    folder = training.run_folder / "first"
    stacks = [(folder / "logs" / "attempt_1" / f"rank_{rank}.stacks.txt").read_text() for rank in range(3)]

    assert [attempt["cause"] for attempt in attempts] == ["hang", "unknown", "hang", None]
    assert [attempt["rank"] for attempt in attempts] == [1, 2, 0, None]
    assert [attempt["from_step"] for attempt in attempts] == [0, 2, 6, 8]
    assert "rank 1" in attempts[0]["detail"]
    assert "it is stopped" in attempts[0]["detail"]
    # on a busy machine one of the two may not be asked in time where it stands
    assert re.search("(1 rank waits|2 ranks wait) for it in", attempts[0]["detail"])
    assert "it stands in tests/toy" in attempts[0]["detail"]  # where it was when the kernel stopped it, a moment later
    assert all("most recent call first" in text for text in stacks)
    assert "SIGKILL" in attempts[1]["detail"]
    assert "in fall_asleep" in attempts[2]["detail"]
    assert [event["cause"] for event in events(folder, "verdict")] == ["hang", "unknown", "hang"]
    assert curve(folder) == curve(slowed)


def test_a_loss_that_is_no_number_ends_the_training_for_good(training: Orch) -> None:
    attempts = launch(training, accidents={"0.0": "nan"})

    assert [attempt["cause"] for attempt in attempts] == ["diverged"]
    assert "rank 1" in attempts[0]["detail"]
    assert attempts[0]["decision"].startswith("not again: diverged")


def test_a_rank_that_runs_out_of_memory_is_named_though_its_peers_fail_too(training: Orch) -> None:
    attempts = launch(training, accidents={"3.1": "memory"})

    assert [(attempt["cause"], attempt["rank"]) for attempt in attempts] == [("out_of_memory", 1)]
