"""What a chain asks of Slurm, made from what the stage's folder and the ledger remember."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.resources import Resources
from slurm.cluster import Cluster
from slurm.controller import Controller


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        ({"unit": "step", "rate_per_s": 0.05}, 2 * 100 + 20 + 60),  # two saves, a step, what Slurm is early by
        ({"unit": "step", "rate_per_s": 0.0}, 2 * 100 + 60),
        ({"unit": "image", "rate_per_s": 0.05}, 2 * 100 + 60),
        (None, 2 * 100 + 60),
    ],
)
def test_a_stage_is_told_to_stop_as_early_as_its_saves_and_steps_took(
    tmp_path: Path, progress: dict[str, Any] | None, expected: int
) -> None:
    checkpoint = tmp_path / "checkpoints" / "step_10"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps({"save_s": 100.0}), encoding="utf-8")
    if progress is not None:
        (tmp_path / "progress.json").write_text(json.dumps(progress), encoding="utf-8")

    found = Controller(Cluster(name="toy")).signal_s(tmp_path, Resources(hours=24))

    assert found == expected
