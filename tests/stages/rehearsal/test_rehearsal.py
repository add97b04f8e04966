"""The rehearsal stages: every sample leaves its trace, in the journal and in the loss."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.artifacts import Shards
from orchestrator.data.reader import ShardSet
from orchestrator.errors import InputError
from stages.rehearsal.points import HiddenMap, from_members, key_of, to_members

REPOSITORY = Path(__file__).parents[3]
TRAIN = {
    "steps": 8, "global_batch": 6, "workers": 0, "save": {"every_steps": 4}, "optim": {"lr": 0.1},
    "engine": {"name": "torch", "precision": "fp32"},
}  # fmt: skip


def launch(folder: Path, name: str, *overrides: str, **train: Any) -> Path:
    recipe = {
        "name": name, "seed": 3, "tracking": {"uri": None}, "runs": str(folder / "runs"),
        "stages": {
            "data": {"stage": "rehearsal_data", "config": {"samples": 24, "features": 5, "targets": 2}},
            "more": {
                "stage": "rehearsal_data", "inputs": {"before": "data.shards"},
                "config": {"samples": 6, "features": 5, "targets": 2},
            },
            "train": {
                "stage": "rehearsal_training", "inputs": {"shards": {"points": "data.shards"}},
                "config": {"features": 5, "targets": 2, "train": {**TRAIN, **train}},
            },
            "check": {"stage": "rehearsal_check", "inputs": {"model": "train.model", "shards": "data.shards"}},
        },
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "launch", str(path), *overrides], cwd=folder, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / name


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "train" / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains on one process, once for all tests of this file."""
    return launch(tmp_path_factory.mktemp("alone"), "alone", micro_batch=2)


def test_a_point_is_a_function_of_seed_and_number() -> None:
    first, again, other = (HiddenMap(seed, features=3, targets=2) for seed in (1, 1, 2))

    assert first.point(7) == again.point(7)
    assert first.point(7) != first.point(8)
    assert first.point(7) != other.point(7)


def test_a_point_reads_back_from_its_members() -> None:
    point = HiddenMap(1, features=3, targets=2).point(4)

    assert from_members(key_of(4), to_members(4, point)) == point


@pytest.mark.parametrize("members", [{}, {"json": b"{}"}, {"json": b"[1]"}, {"json": b'{"inputs": 3, "outputs": [1]}'}])
def test_samples_of_others_are_refused_by_name(members: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match="00000009 is no sample of rehearsal_data"):
        from_members(key_of(9), members)


@pytest.mark.slow
@pytest.mark.needs("torch")
def test_the_journal_has_the_samples_of_every_step_and_an_epoch_has_each_once(alone: Path) -> None:
    told = [key for event in events(alone, "samples") for key in event["keys"]]

    assert len(events(alone, "loss")) == 8
    assert len(told) == 8 * 6
    assert Counter(told) == {key_of(number): 2 for number in range(24)}
    result = json.loads((alone / "check" / "report" / "result.json").read_text(encoding="utf-8"))
    assert result["samples"] == 24
    assert set(result["weights"]) == {"bias", "weight"}


@pytest.mark.slow
@pytest.mark.needs("torch")
def test_three_ranks_see_the_same_samples_as_one_and_learn_the_same(tmp_path: Path, alone: Path) -> None:
    three = launch(tmp_path, "three", "stages.train.resources.tasks_per_node=3")

    of_one = [set(event["keys"]) for event in events(alone, "samples")]
    assert [set(event["keys"]) for event in events(three, "samples")] == [
        one | two | last for one, two, last in zip(*[iter(of_one)] * 3, strict=True)
    ]
    losses = [[event["value"] for event in events(run, "loss")] for run in (alone, three)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.slow
@pytest.mark.needs("torch")
def test_a_second_set_goes_on_where_the_first_ended(alone: Path) -> None:
    with ShardSet(alone / "more" / "shards") as more:
        keys = [more.read(number)[0] for number in range(len(more))]

    assert keys == [key_of(number) for number in range(24, 30)]
    assert Shards(alone / "more" / "shards").facts()["last"] == 29
