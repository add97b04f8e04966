"""A GLaMM whose blocks are compiled learns as one whose blocks are not, also where ZeRO-3 gathers them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.data.stream import Drawn
from orchestrator.errors import InputError
from orchestrator.training.compiling import compile_blocks
from orchestrator.training.config import OptimConfig
from orchestrator.training.engine import make_engine
from orchestrator.world import World
from stages.glamm.model import Glamm
from stages.glamm.task import GlammTask, Start, Weights
from tests.ranks import run_ranks
from tests.stages.glamm_models import tiny_blueprint, vocabulary
from tests.stages.scenes import scene
from tests.toys import toy_engine, toy_train

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]

SOURCES = ("grounded", "boxes", "grounded")  # of other lengths: what was compiled must serve them all


def learnt(world: World, **engine: Any) -> list[float]:
    """Trains a step on each source; returns losses and norms of gradients."""
    words = vocabulary()
    kinds = {"grounded": "gcg", "boxes": "region"}
    task = GlammTask(tiny_blueprint(words), words, kinds, start=Start(), weights=Weights(), max_regions=4)
    train = toy_train(3, global_batch=2, engine=toy_engine(**engine), optim=OptimConfig(lr=1e-3, clip_norm=0.5))
    running = make_engine(task, train, trainable=("*",), world=world, seed=3)
    found = []
    for number, source in enumerate(SOURCES):
        one = scene(number + world.rank)
        batch = task.collate([Drawn(source=source, key=one.key, members=one.to_members(), seed=1, place=0)])
        loss = task.loss(running.module, batch).total
        running.backward(loss)
        running.step()
        found += [loss.item(), running.scalars()["grad_norm"]]
    return found


def on_rank(world: World) -> tuple[list[float], list[float], int]:
    torch.set_num_threads(1)
    plain = learnt(world, name="deepspeed", zero_stage=3)
    compiled = learnt(world, name="deepspeed", zero_stage=3, compile="aot_eager", activation_checkpointing=True)
    return plain, compiled, compiled_frames()


def compiled_frames() -> int:
    import torch._dynamo.utils as dynamo

    return int(dynamo.counters["frames"]["ok"])


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # of transformers 6
def test_compiled_blocks_learn_the_same_under_zero_3(tmp_path: Path) -> None:
    for plain, compiled, frames in run_ranks(2, on_rank, directory=tmp_path):
        assert compiled == pytest.approx(plain, rel=1e-4)
        assert frames >= 3  # one of each kind of block, at least


def test_a_block_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"train\.engine\.compile: 'NoSuchLayer' names no module"):
        compile_blocks(Glamm(tiny_blueprint(vocabulary())), ["NoSuchLayer"], backend="eager")
