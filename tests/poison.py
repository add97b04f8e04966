"""The toy's task with samples that harm, and the curve of a training by hand that knows of them from the beginning."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.data.stream import Drawn
from orchestrator.training.config import TrainConfig
from orchestrator.training.engine import make_engine
from orchestrator.training.loop import seed_step
from orchestrator.training.task import Losses
from orchestrator.world import World
from tests.toys import ToyStream, ToyTask

NAN = math.nan


class PoisonedTask(ToyTask):
    """Multiplies the loss of a batch with the factors of the samples in it: key -> factor."""

    def __init__(self, poison: Mapping[str, float], *, dropout: float = 0.1) -> None:
        super().__init__(dropout=dropout)
        self.poison = poison

    def collate(self, drawn: Sequence[Drawn]) -> Any:
        factor = math.prod(self.poison.get(sample.key, 1.0) for sample in drawn)
        return super().collate(drawn), factor

    def loss(self, model: nn.Module, batch: Any) -> Losses:
        letters_BL, factor = batch
        losses = super().loss(model, letters_BL)
        return Losses(total=self.poisoned(losses.total, factor), terms=losses.terms)

    def poisoned(self, loss: Tensor, factor: float) -> Tensor:
        return loss * factor


class SteepTask(PoisonedTask):
    """Multiplies the gradients alone."""

    def poisoned(self, loss: Tensor, factor: float) -> Tensor:
        return loss + (factor - 1.0) * (loss - loss.detach())


def by_hand(
    world: World, train: TrainConfig, *, without: Collection[int], first_weights: int = 5, seed: int = 5
) -> dict[int, float]:
    """Trains the toy without some steps, and without the loop; returns the loss of each step."""
    torch.set_num_threads(1)
    task = ToyTask()
    engine = make_engine(task, train, trainable=("*",), world=world, seed=first_weights)
    batches = ToyStream(train, world).batches(task.collate, start_step=0, steps=train.steps)
    found: dict[int, float] = {}
    for step in range(1, train.steps + 1):
        parts = [next(batches) for _ in range(engine.accumulation)]
        if step in without:
            engine.pass_over()
            continue
        seed_step(seed, step, world.rank)
        losses = []
        for part in parts:
            loss = task.loss(engine.module, part).total
            engine.backward(loss)
            losses.append(loss.detach().double())
        engine.step()
        found[step] = world.mean({"loss": sum(losses).item() / len(losses)})["loss"]  # type: ignore[union-attr]  # there is one
    return found
