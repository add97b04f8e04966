"""The loop on several ranks: whatever happens, happens on all of them at the same step."""

from pathlib import Path

import torch
from torch import Tensor, nn

from orchestrator.training.task import Losses
from orchestrator.world import World
from tests.ranks import run_ranks
from tests.toys import ToyTask, curve, toy_fit, toy_train


class BreaksOnOneRankTask(ToyTask):
    """Gives a loss that is not a number in the third batch of rank 1."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.left = 3 if rank == 1 else -1

    def loss(self, model: nn.Module, batch: Tensor) -> Losses:
        self.left -= 1
        losses = super().loss(model, batch)
        return losses if self.left else Losses(total=losses.total * float("inf"), terms=losses.terms)


def _scenes(world: World, directory: Path) -> dict[str, object]:
    stop_after = 2 if world.rank == 1 else None
    diverged = toy_fit(world, directory / "diverged", toy_train(5), task=BreaksOnOneRankTask(world.rank))
    stopped = toy_fit(world, directory / "stopped", toy_train(5), stop_after=stop_after)
    left_s = 0.1 if world.rank == 1 else 1000.0  # one rank alone will be killed soon
    hurried = toy_fit(world, directory / "stopped", toy_train(5), stop_after=stop_after, left_s=left_s)
    spread = toy_fit(world, directory / "spread", toy_train(4), task=ToyTask(dropout=0.0))
    weights = torch.cat([p.detach().flatten() for p in spread.engine.module.parameters()])
    outcomes = {"diverged": diverged.outcome, "stopped": stopped.outcome, "hurried": hurried.outcome}
    return {**outcomes, "sum": float(weights.double().sum())}


def test_ranks_agree_on_every_end_and_on_the_weights(tmp_path: Path) -> None:
    first, second = run_ranks(2, _scenes, tmp_path, directory=tmp_path)
    toy_fit(World.alone(), tmp_path / "alone", toy_train(4), task=ToyTask(dropout=0.0))

    assert first == second
    assert str(first["diverged"]).startswith("Diverged: the loss of step 3 is not finite on rank 1;")
    assert first["stopped"] == "Preempted: stopped after step 2 of 5; everything is saved"
    assert first["hurried"] == "Preempted: stopped after step 4 of 5; there was no time to save it"
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == ["step_00000002"]
    spread, alone = curve(tmp_path / "spread"), curve(tmp_path / "alone")
    assert all(abs(spread[step] - alone[step]) < 1e-5 for step in alone)
