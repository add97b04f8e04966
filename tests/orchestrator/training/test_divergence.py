"""What becomes of a step that does harm, in one process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.training.config import AverageConfig, DivergenceConfig, SaveConfig, TrainConfig
from orchestrator.training.divergence import robust_z
from orchestrator.training.weights import load_weights
from orchestrator.world import World
from tests.poison import NAN, PoisonedTask, SteepTask, by_hand
from tests.toys import curve, toy_fit, toy_train

ALONE = World.alone()
STEPS, BAD = 9, 6
POISON = {f"{BAD - 1}-4": NAN}


def policy(**given: Any) -> TrainConfig:
    return toy_train(STEPS, divergence=DivergenceConfig(**given), save=SaveConfig(every_steps=4))


def events(directory: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (directory / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["event"] == kind]


def test_training_stops_before_the_weights_are_touched_and_names_the_samples(tmp_path: Path) -> None:
    fitted = toy_fit(ALONE, tmp_path, policy(), task=PoisonedTask(POISON))

    assert fitted.outcome.startswith(
        f"Diverged: the loss of step {BAD} is not finite on rank 0; no weight was updated by it; "
        "its samples: 5-0, 5-1, 5-2, 5-3, 5-4 and 7 more. A lower train.optim.lr"
    )
    assert POISON.keys() < set(events(tmp_path, "diverged")[0]["samples"])
    assert list(curve(tmp_path)) == list(range(1, BAD))


@pytest.mark.parametrize("what", ["skip", "roll_back"])
def test_a_step_left_out_is_as_if_it_had_never_been(tmp_path: Path, what: str) -> None:
    train = policy(on_nonfinite=what)

    fitted = toy_fit(ALONE, tmp_path, train, task=PoisonedTask(POISON))

    expected = by_hand(ALONE, train, without=[BAD])
    assert fitted.outcome == "done"
    assert curve(tmp_path) == expected
    assert BAD not in expected
    told = events(tmp_path, "left_out")
    assert [(event["step"], event["policy"]) for event in told] == [(BAD, what)]
    assert len(told[0]["samples"]) == train.global_batch
    assert int(dict(fitted.engine.module.named_buffers())["seen"]) == train.global_batch * (STEPS - 1)


def test_rolling_back_repeats_the_steps_since_the_checkpoint(tmp_path: Path) -> None:
    toy_fit(ALONE, tmp_path, policy(on_nonfinite="roll_back"), task=PoisonedTask(POISON))

    assert [event["step"] for event in events(tmp_path, "loss")] == [1, 2, 3, 4, 5, 5, 7, 8, 9]


@pytest.mark.parametrize("what", ["skip", "roll_back"])
@pytest.mark.parametrize("stop_after", [5, 6, 7])
def test_a_killed_and_resumed_run_does_the_same(tmp_path: Path, what: str, stop_after: int) -> None:
    train = policy(on_nonfinite=what)
    toy_fit(ALONE, tmp_path, train, task=PoisonedTask(POISON), stop_after=stop_after)
    for saved in (tmp_path / "checkpoints").glob("step_*"):  # as if killed before the last save
        if saved.name != "step_00000004":
            (saved / "manifest.json").unlink()

    resumed = toy_fit(ALONE, tmp_path, train, task=PoisonedTask(POISON), first_weights=77)

    assert resumed.outcome == "done"
    assert curve(tmp_path) == by_hand(ALONE, train, without=[BAD])
    assert [event["step"] for event in events(tmp_path, "left_out")] == [BAD]


def test_the_moving_average_goes_back_too(tmp_path: Path) -> None:
    averages = []
    for what in ("skip", "roll_back"):
        policy_of = {"divergence": DivergenceConfig(on_nonfinite=what), "save": SaveConfig(every_steps=4)}
        train = toy_train(STEPS, average=AverageConfig(decay=0.7), **policy_of)
        fitted = toy_fit(ALONE, tmp_path / what, train, task=PoisonedTask(POISON))
        fitted.engine.save_average(tmp_path / what / "average" / "weights")
        averages.append(load_weights(tmp_path / what / "average"))

    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])


def test_after_so_many_steps_left_out_training_stops(tmp_path: Path) -> None:
    poison = {f"{step}-0": NAN for step in (1, 3, 5)}

    fitted = toy_fit(ALONE, tmp_path, policy(on_nonfinite="skip", most=2), task=PoisonedTask(poison))

    assert "2 steps are left out already, as many as train.divergence.most = 2 allows" in fitted.outcome
    assert list(curve(tmp_path)) == [1, 3, 5]


def test_without_a_checkpoint_there_is_nothing_to_go_back_to_but_the_next_attempt_knows(tmp_path: Path) -> None:
    train, poison = policy(on_nonfinite="roll_back"), {"1-0": NAN}

    first = toy_fit(ALONE, tmp_path, train, task=PoisonedTask(poison))
    second = toy_fit(ALONE, tmp_path, train, task=PoisonedTask(poison))

    assert "there is no checkpoint before step 2 to go back to" in first.outcome
    assert second.outcome == "done"
    assert curve(tmp_path) == by_hand(ALONE, train, without=[2])


@pytest.mark.parametrize("task", [PoisonedTask, SteepTask])
@pytest.mark.parametrize("what", ["skip", "roll_back"])
def test_a_spike_of_the_loss_or_of_the_gradients_is_left_out(
    tmp_path: Path, what: str, task: type[PoisonedTask]
) -> None:
    train = policy(on_spike=what, window=4, spike_factor=50.0, norm_factor=500.0)
    poison = {f"{BAD - 1}-4": 1e4}

    fitted = toy_fit(ALONE, tmp_path, train, task=task(poison))

    assert fitted.outcome == "done"
    assert curve(tmp_path) == by_hand(ALONE, train, without=[BAD])
    why = events(tmp_path, "left_out")[0]["why"]
    assert ("norm of the gradients" if task is SteepTask else f"the loss of step {BAD} is") in why
    assert "robust standard deviations above the median" in why


def test_a_resumed_run_knows_the_losses_before_its_checkpoint(tmp_path: Path) -> None:
    train = policy(on_spike="skip", window=4, spike_factor=50.0, norm_factor=500.0)
    poison = {"4-4": 1e4}  # in the first step after the checkpoint
    toy_fit(ALONE, tmp_path, train, task=PoisonedTask(poison), stop_after=4)

    toy_fit(ALONE, tmp_path, train, task=PoisonedTask(poison), first_weights=77)

    assert curve(tmp_path) == by_hand(ALONE, train, without=[5])


def test_spikes_pass_where_nobody_asks(tmp_path: Path) -> None:
    fitted = toy_fit(ALONE, tmp_path, policy(window=4), task=PoisonedTask({"5-4": 1e4}))

    assert fitted.outcome == "done"
    assert curve(tmp_path)[BAD] > 1e4


def test_the_robust_deviation_does_not_mind_what_lies_outside() -> None:
    quiet = [1.0, 1.1, 0.9, 1.05, 0.95]

    assert robust_z(1.0, quiet) == 0
    assert robust_z(2.0, quiet) == pytest.approx(1.0 / (1.4826 * 0.05))
    assert robust_z(2.0, [*quiet[:-1], 1e9]) == pytest.approx((2.0 - 1.05) / (1.4826 * 0.05))
    assert robust_z(1.01, [1.0] * 5) == pytest.approx(10.0)  # a thousandth of the median is the least deviation
