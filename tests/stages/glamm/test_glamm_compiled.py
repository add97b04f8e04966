"""A GLaMM whose blocks are compiled learns as one whose blocks are not."""

from typing import Any

import pytest

from orchestrator.data.stream import Drawn
from orchestrator.errors import InputError
from orchestrator.training.compiling import compile_blocks
from orchestrator.training.config import OptimConfig
from orchestrator.training.engine import make_engine
from orchestrator.world import World
from stages.glamm.model import Glamm
from stages.glamm.task import GlammTask, Start, Weights
from tests.stages.glamm_models import tiny_blueprint, vocabulary
from tests.stages.scenes import scene
from tests.toys import toy_engine, toy_train

SOURCES = ("grounded", "boxes")  # of other lengths: what was compiled must serve both


def learnt(**engine: Any) -> list[float]:
    """Trains a step on each source; returns losses and norms of gradients."""
    words = vocabulary()
    kinds = {"grounded": "gcg", "boxes": "region"}
    task = GlammTask(tiny_blueprint(words), words, kinds, start=Start(), weights=Weights(), max_regions=4)
    train = toy_train(2, global_batch=1, engine=toy_engine(**engine), optim=OptimConfig(lr=1e-3, clip_norm=0.5))
    running = make_engine(task, train, trainable=("*",), world=World.alone(), seed=3)
    found = []
    for number, source in enumerate(SOURCES):
        one = scene(number)
        batch = task.collate([Drawn(source=source, key=one.key, members=one.to_members(), seed=1, place=0)])
        loss = task.loss(running.module, batch).total
        running.backward(loss)
        running.step()
        found += [loss.item(), running.scalars()["grad_norm"]]
    return found


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.needs("torch")
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # of transformers 6
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at everything
def test_compiled_blocks_learn_the_same() -> None:
    import torch._dynamo.utils as dynamo

    plain, before = learnt(), dynamo.counters["frames"]["ok"]
    compiled = learnt(compile="eager", activation_checkpointing=True)

    assert compiled == pytest.approx(plain, rel=1e-4)
    assert dynamo.counters["frames"]["ok"] >= before + len(GlammTask.blocks)


def test_a_block_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"train\.engine\.compile: 'NoSuchLayer' names no module"):
        compile_blocks(Glamm(tiny_blueprint(vocabulary())), ["NoSuchLayer"], backend="eager")
