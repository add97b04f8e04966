"""A step of CLOC gives the same loss, the same gradients and the same weights on one, two and three ranks."""

from pathlib import Path

import pytest
import torch

from orchestrator.training.config import OptimConfig
from orchestrator.training.engine import make_engine
from orchestrator.world import World
from stages.cloc.task import Weights
from tests.ranks import run_ranks
from tests.stages.cloc_models import scenes, tiny_task
from tests.toys import toy_engine, toy_train

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]

STEPS, BATCH = 2, 6


def learnt(world: World, name: str, chunk: int | None) -> list[float]:
    """Learns two batches; returns losses and norms of gradients. The second loss tells whether the update was right."""
    torch.set_num_threads(1)
    optim = OptimConfig(lr=1e-2, clip_norm=None)
    train = toy_train(STEPS, global_batch=BATCH, engine=toy_engine(name), optim=optim)
    task = tiny_task(chunk=chunk, weights=Weights(conflict=None))  # fresh weights put all texts close together
    engine = make_engine(task, train, trainable=("*",), world=world, seed=3)
    share = BATCH // world.size
    figures = []
    for step in range(STEPS):
        batch = task.collate(scenes(BATCH, first=step * BATCH)[world.rank * share : (world.rank + 1) * share])
        loss = task.loss(engine.module, batch).total
        engine.backward(loss)
        engine.step()
        figures += [world.mean({"loss": loss.item()})["loss"], engine.scalars()["grad_norm"]]
    return figures


def in_two_ways(world: World) -> list[list[float]]:
    """Learns under ZeRO-3, whole and image by image."""
    return [learnt(world, "deepspeed", None), learnt(world, "deepspeed", 1)]


@pytest.mark.parametrize("size", [2, 3])
def test_a_step_is_the_same_on_any_number_of_ranks(size: int, tmp_path: Path) -> None:
    alone = learnt(World.alone(), "torch", None)

    for rank in run_ranks(size, in_two_ways, directory=tmp_path):
        for figures in rank:
            assert figures == pytest.approx(alone, rel=1e-4)
