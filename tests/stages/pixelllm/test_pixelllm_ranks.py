"""PixelLLM learns under ZeRO-3 on two ranks, sources taking turns, what one process learns."""

from pathlib import Path

import pytest
import torch

from orchestrator.data.rules import OrderRules
from orchestrator.data.stream import SampleStream
from orchestrator.training.config import OptimConfig
from orchestrator.training.engine import make_engine
from orchestrator.world import World
from stages.towers import TowerKind
from tests.ranks import run_ranks
from tests.stages.pixelllm_models import KINDS, narrated, pieces, tiny_task
from tests.stages.scenes import write_shards
from tests.toys import toy_engine, toy_train

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]

STEPS, BATCH = 4, 4
ALL, FEW = ("traces", "expressions", "boxes", "segments"), ("traces", "expressions")


def _learnt(world: World, directory: Path, engine_name: str, tower: TowerKind, sources: tuple[str, ...]) -> list[float]:
    """Learns some steps; returns the loss and the norm of each."""
    torch.set_num_threads(1)
    kinds = {name: KINDS[name] for name in sources}  # of few sources, masks and proposals learn nothing
    task = tiny_task(pieces(), kinds=kinds, tower=tower, lora=True, masks=True)
    train = toy_train(
        STEPS, global_batch=BATCH, micro_batch=1, engine=toy_engine(engine_name),
        optim=OptimConfig(lr=1e-3, clip_norm=None),
    )  # fmt: skip
    engine = make_engine(task, train, trainable=("*",), world=world, seed=3)
    stream = SampleStream(
        {name: directory / name for name in sources}, weights={}, rules=OrderRules(), seed=1, global_batch=BATCH,
        micro_batch=1, world_rank=world.rank, world_size=world.size,
    )  # fmt: skip
    figures, losses = list[float](), list[float]()
    for batch in stream.batches(task.collate, start_step=0, steps=STEPS):
        loss = task.loss(engine.module, batch).total
        engine.backward(loss)
        losses.append(loss.item())
        if len(losses) == engine.accumulation:
            engine.step(lambda norm: norm > 0)
            figures += [world.mean({"loss": sum(losses) / len(losses)})["loss"], engine.scalars()["grad_norm"]]
            losses.clear()
    return figures


@pytest.mark.parametrize(("tower", "sources"), [("clip", ALL), ("clip", FEW), ("eva02", ALL)])
def test_two_ranks_that_share_the_weights_learn_what_one_process_learns(
    tower: TowerKind, sources: tuple[str, ...], tmp_path: Path
) -> None:
    for start, name in enumerate(sources):
        write_shards(tmp_path / name, [narrated(8 * start + number) for number in range(8)])

    expected = _learnt(World.alone(), tmp_path, "torch", tower, sources)
    first, second = run_ranks(2, _learnt, tmp_path, "deepspeed", tower, sources, directory=tmp_path, timeout_s=300)

    assert len(expected) == 2 * STEPS
    assert first == second
    assert first == pytest.approx(expected, rel=1e-3)
