"""A step of packs gives the same loss and the same gradients on one, two and three ranks."""

from functools import partial
from pathlib import Path

import pytest
import torch

from orchestrator.data.lengths import Lengths, join_parts, measure_part
from orchestrator.data.packing import PackingPlan, make_plan
from orchestrator.data.reader import ShardSet
from orchestrator.data.rules import OrderRules, PackRule
from orchestrator.data.stream import SampleStream
from orchestrator.training.config import OptimConfig
from orchestrator.training.engine import make_engine
from orchestrator.world import World
from stages.glamm.stages import GcgTuning
from stages.glamm.task import GlammTask, Start, Weights
from tests.ranks import run_ranks
from tests.stages.glamm_models import tiny_blueprint, vocabulary
from tests.stages.scenes import scene, write_shards
from tests.toys import toy_engine, toy_train

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]

STEPS, PACKS = 2, 6
RULE = PackRule(budget=300)  # three conversations


class Noting:
    """Accepts every update, and keeps the gradients of the first one of this rank's engine."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self.gradients: list[float] = []

    def __call__(self, norm: float) -> bool:
        if not self.gradients:
            gradients = [parameter.grad for parameter in self._model.parameters()]
            self.gradients = [value for found in gradients if found is not None for value in found.flatten().tolist()]
        return norm > 0


def _task() -> GlammTask:
    words = vocabulary()
    kinds = {"grounded": "gcg"}
    blueprint = tiny_blueprint(words, lora=True)
    return GlammTask(blueprint, words, kinds, start=Start(), weights=Weights(), max_regions=4)


def _learnt(world: World, directory: Path) -> tuple[list[float], list[float]]:
    """Learns some packs; returns the losses and norms of the steps, and the gradients of the first."""
    torch.set_num_threads(1)
    task = _task()
    lengths = Lengths.load(directory / "units", "grounded")
    assert lengths is not None
    train = toy_train(
        STEPS, global_batch=PACKS, micro_batch=1, engine=toy_engine(), optim=OptimConfig(lr=1e-3, clip_norm=None)
    )
    engine = make_engine(task, train, trainable=GcgTuning.trainable, world=world, seed=3)
    engine.module.eval()  # adapters drop nothing
    stream = SampleStream(
        {"grounded": directory / "shards"}, weights={}, rules=OrderRules(pack=RULE), seed=1, global_batch=PACKS,
        plans={"grounded": PackingPlan(directory / "units", lengths)}, micro_batch=1, world_rank=world.rank,
        world_size=world.size,
    )  # fmt: skip
    figures, losses = list[float](), list[float]()
    noting = Noting(engine.model)
    for batch in stream.batches(task.collate, start_step=0, steps=STEPS):
        loss = task.loss(engine.module, batch).total
        engine.backward(loss)
        losses.append(loss.item())
        if len(losses) == engine.accumulation:
            engine.step(noting)
            figures += [world.mean({"loss": sum(losses) / len(losses)})["loss"], engine.scalars()["grad_norm"]]
            losses.clear()
    return figures, noting.gradients


def test_packs_teach_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [scene(number) for number in range(30)])
    with ShardSet(tmp_path / "shards") as samples:
        length_of = partial(_task().length_of, "grounded")
        measure_part(tmp_path / "units", samples, length_of, "grounded", rank=0, size=1)
        plan = make_plan(tmp_path / "units", join_parts(tmp_path / "units", len(samples), "grounded"), RULE)

    expected, gradients = _learnt(World.alone(), tmp_path)
    two = run_ranks(2, _learnt, tmp_path, directory=tmp_path, timeout_s=300)
    three = run_ranks(3, _learnt, tmp_path, directory=tmp_path, timeout_s=300)

    assert plan.samples_per_unit > 1.5
    assert len(gradients) > 1000
    for figures, theirs in (*two, *three):
        assert figures == pytest.approx(expected, rel=1e-4)
        torch.testing.assert_close(torch.tensor(theirs), torch.tensor(gradients), rtol=1e-3, atol=1e-6)
