"""A Pix2Cap in pieces on two ZeRO-3 ranks: the same loss as in one piece, and no rank waits for another's segments."""

from pathlib import Path

import pytest
import torch

from orchestrator.training.config import OptimConfig
from orchestrator.training.engine import make_engine
from orchestrator.world import World
from tests.ranks import run_ranks
from tests.stages.pix2cap_models import bare, batch_of, sample, tiny_model, tiny_task, vocabulary
from tests.toys import toy_engine, toy_train

pytestmark = [pytest.mark.long, pytest.mark.needs("torch")]

SEED, STEPS = 3, 3


def _first_loss(model: torch.nn.Module) -> float:
    torch.manual_seed(0)  # of the points at which masks are compared
    words = vocabulary()
    return float(tiny_task(words).loss(model, batch_of(words, [sample()])).total.item())


def _learnt(world: World) -> tuple[float, list[float]]:
    """Returns the loss of fresh weights, and those of some steps whose segments are all on one of the ranks."""
    words = vocabulary()
    task = tiny_task(words)
    train = toy_train(
        STEPS, global_batch=2, micro_batch=1, engine=toy_engine("deepspeed"), optim=OptimConfig(lr=1e-3, clip_norm=1.0)
    )
    engine = make_engine(task, train, trainable=("*",), world=world, seed=SEED)
    first, losses = _first_loss(engine.module), list[float]()
    for step in range(STEPS):
        here = step % world.size == world.rank
        loss = task.loss(engine.module, batch_of(words, [sample(step) if here else bare(sample(step))])).total
        engine.backward(loss)
        engine.step(lambda norm: norm > 0)
        losses.append(float(loss.item()))
    return first, losses


def test_two_ranks_compute_what_one_does_and_never_wait_for_segments(tmp_path: Path) -> None:
    alone = _first_loss(tiny_model(vocabulary(), seed=SEED).train())

    told = run_ranks(2, _learnt, directory=tmp_path)

    assert [first for first, _ in told] == pytest.approx([alone, alone], rel=1e-4)
    assert all(torch.tensor(losses).isfinite().all() for _, losses in told)
