"""A sample on one rank does harm: both leave its step out, under every engine, and so do others that resume."""

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from orchestrator.training.config import DivergenceConfig, SaveConfig, TrainConfig
from orchestrator.world import World
from tests.poison import NAN, PoisonedTask, SteepTask, by_hand
from tests.ranks import run_ranks
from tests.toys import curve, toy_engine, toy_fit, toy_train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

STEPS, BAD = 7, 5
ENGINES = {
    "torch": toy_engine(),
    "zero1_bf16": toy_engine("deepspeed", zero_stage=1, precision="bf16"),
    "zero2_bf16": toy_engine("deepspeed", zero_stage=2, precision="bf16"),
    "zero3": toy_engine("deepspeed"),
}


def _train(engine: str, **policy: Any) -> TrainConfig:
    divergence = DivergenceConfig(**{"window": 4, "spike_factor": 100.0, "norm_factor": 1000.0, **policy})
    return toy_train(
        STEPS, engine=ENGINES[engine], micro_batch=2, save=SaveConfig(every_steps=3), divergence=divergence
    )


def _scenes(world: World, directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    last = {f"{BAD - 1}-11": NAN}  # the last place of the batch: on the last rank
    for engine in ENGINES:
        found[engine] = by_hand(world, _train(engine), without=[BAD])
        for what in ("skip", "roll_back"):
            train = _train(engine, on_nonfinite=what)
            name = f"{engine}_{what}"
            found[name] = toy_fit(world, directory / name, train, task=PoisonedTask(last)).outcome
        steep = _train(engine, on_spike="skip")
        task = SteepTask({f"{BAD - 1}-11": 1e6})
        found[f"{engine}_steep"] = toy_fit(world, directory / f"{engine}_steep", steep, task=task).outcome
    paused = _train("zero3", on_nonfinite="roll_back")
    toy_fit(world, directory / "paused", paused, task=PoisonedTask(last, dropout=0.0), stop_after=BAD + 1)
    toy_fit(world, directory / "whole", paused, task=PoisonedTask(last, dropout=0.0))
    return found


def _elsewhere(world: World, directory: Path) -> str:
    last, train = {f"{BAD - 1}-11": NAN}, _train("zero3", on_nonfinite="roll_back")
    return toy_fit(world, directory, train, task=PoisonedTask(last, dropout=0.0), first_weights=9).outcome


Found = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What two ranks did, under every engine and policy."""
    directory = tmp_path_factory.mktemp("divergence")
    return directory, run_ranks(2, _scenes, directory, directory=directory, timeout_s=300)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("what", ["skip", "roll_back", "steep"])
def test_both_ranks_leave_out_a_step_that_harms_one(found: Found, engine: str, what: str) -> None:
    directory, (first, second) = found

    assert first[f"{engine}_{what}"] == second[f"{engine}_{what}"] == "done"
    assert curve(directory / f"{engine}_{what}") == pytest.approx(first[engine], abs=1e-6)
    assert BAD not in first[engine]


def test_only_the_samples_of_the_rank_that_is_harmed_are_named(found: Found) -> None:
    journal = (found[0] / "zero3_skip" / "journal.jsonl").read_text(encoding="utf-8")
    line = next(line for line in journal.splitlines() if '"left_out"' in line)

    assert f'"{BAD - 1}-11"' in line
    assert "is not finite on rank 1" in line
    assert f'"{BAD - 1}-0"' not in line


@pytest.mark.parametrize("size", [1, 3])
def test_others_that_resume_leave_it_out_too(found: Found, size: int, tmp_path: Path) -> None:
    copytree(found[0] / "paused", tmp_path / "paused")

    outcomes = run_ranks(size, _elsewhere, tmp_path / "paused", directory=tmp_path)

    assert outcomes == ["done"] * size
    assert curve(tmp_path / "paused") == pytest.approx(curve(found[0] / "whole"), abs=1e-5)
