"""Which checkpoints stay."""

import json
from pathlib import Path

import pytest

from orchestrator.artifacts import MANIFEST
from orchestrator.training.config import BestRule, SaveConfig
from orchestrator.training.retention import Kept, clear_left_over, kept_steps, newest, retire

FINGERPRINT = "f" * 12
LOSSES = {10: 5.0, 20: 3.0, 30: 4.0, 40: 2.0, 50: 6.0, 60: 2.0}


def kept(rules: SaveConfig) -> list[int]:
    found = [Kept(step=step, path=Path(str(step)), metrics={"loss": loss}) for step, loss in LOSSES.items()]
    return sorted(kept_steps(found, rules))


@pytest.mark.parametrize(
    ("rules", "steps"),
    [
        (SaveConfig(keep_last=1), [60]),
        (SaveConfig(keep_last=99), list(LOSSES)),
        (SaveConfig(keep_last=1, keep_every=20), [20, 40, 60]),
        (SaveConfig(keep_last=1, keep_best=BestRule(metric="loss", count=2)), [40, 60]),
        (SaveConfig(keep_last=1, keep_best=BestRule(metric="loss", count=3)), [20, 40, 60]),
        (SaveConfig(keep_last=1, keep_best=BestRule(metric="loss", mode="max")), [50, 60]),
        (SaveConfig(keep_last=2, keep_every=30, keep_best=BestRule(metric="loss", mode="max")), [30, 50, 60]),
    ],
)
def test_a_checkpoint_stays_that_any_rule_keeps(rules: SaveConfig, steps: list[int]) -> None:
    assert kept(rules) == steps


def test_of_equally_good_checkpoints_the_later_stays() -> None:
    found = [Kept(step=step, path=Path(), metrics={"loss": 1.0}) for step in (1, 2, 3)]

    assert kept_steps(found, SaveConfig(keep_last=1, keep_best=BestRule(metric="loss"))) == {3}


def test_what_is_not_a_number_or_was_not_measured_is_not_the_best() -> None:
    told = {1: {"loss": 2.0}, 2: {"loss": float("nan")}, 3: {"loss": float("-inf")}, 4: {}, 5: {"lr": 0.0}}
    found = [Kept(step=step, path=Path(), metrics=metrics) for step, metrics in told.items()]

    assert kept_steps(found, SaveConfig(keep_last=1, keep_best=BestRule(metric="loss"))) == {1, 5}


def make(directory: Path, step: int, loss: float) -> None:
    path = directory / f"step_{step:08d}"
    path.mkdir(parents=True)
    (path / "state.json").write_text(json.dumps({"metrics": {"loss": loss}}), encoding="utf-8")
    manifest = {"files": {"state.json": (path / "state.json").stat().st_size}, "fingerprint": FINGERPRINT}
    (path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def test_the_others_are_removed(tmp_path: Path) -> None:
    for step, loss in LOSSES.items():
        make(tmp_path, step, loss)

    retire(tmp_path, FINGERPRINT, SaveConfig(keep_last=1, keep_every=30, keep_best=BestRule(metric="loss", count=2)))

    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_{step:08d}" for step in (30, 40, 60)]


def test_what_is_torn_or_of_another_plan_is_not_counted_and_not_touched(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        make(tmp_path, step, 1.0)
    (tmp_path / "step_00000030" / "state.json").write_text("{", encoding="utf-8")

    retire(tmp_path, FINGERPRINT, SaveConfig(keep_last=1))

    assert newest(tmp_path, FINGERPRINT) == (20, tmp_path / "step_00000020")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000020", "step_00000030"]


def test_what_killed_processes_left_is_removed_and_what_was_put_aside_is_not(tmp_path: Path) -> None:
    for name in (".step_00000010.draft", ".step_00000004.old", ".step_00000006.corrupt"):
        (tmp_path / name / "weights").mkdir(parents=True)

    clear_left_over(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == [".step_00000006.corrupt"]
