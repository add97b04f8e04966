"""A training stage from shards to a finished checkpoint, as the worker runs it."""

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.artifacts import Checkpoint, Shards
from orchestrator.data.writer import ShardWriter
from orchestrator.records import record
from orchestrator.training.config import OptimConfig, TrainConfig
from orchestrator.training.stage import TrainingStage
from orchestrator.training.weights import load_weights
from orchestrator.world import World
from tests.ranks import run_ranks
from tests.toys import ToyTask, curve, toy_context, toy_engine, toy_sample, toy_train

if TYPE_CHECKING:
    from orchestrator.training.task import TrainTask


class ToyTraining(TrainingStage):
    """Teaches the toy from real shards."""

    @record
    class Config:
        train: TrainConfig
        mixture: dict[str, float] = field(default_factory=dict)

    @record
    class Inputs:
        shards: dict[str, Shards]

    @record
    class Outputs:
        model: Checkpoint

    trainable = ("blocks", "head")

    def build_task(self) -> "TrainTask[Any]":
        return ToyTask()


def stage(
    directory: Path, train: TrainConfig, *, sources: tuple[str, ...] = ("plain",), **mixture: float
) -> ToyTraining:
    shards = {name: Shards(directory / name) for name in sources}
    config = ToyTraining.Config(train=train, mixture=mixture)
    outputs = ToyTraining.Outputs(model=Checkpoint(directory / "out"))
    return ToyTraining(config, ToyTraining.Inputs(shards=shards), outputs)


def write_shards(directory: Path) -> None:
    writer = ShardWriter(directory)
    for number in range(30):
        sample = toy_sample(number, 0)
        writer.write(sample.key, sample.members)
    Shards(directory).commit("e" * 12, writer.close())


def _trains(world: World, directory: Path) -> dict[str, Any]:
    context = toy_context(directory / "toy", world)
    train = toy_train(4, engine=toy_engine("deepspeed", persistence_threshold=None), micro_batch=2)
    facts = stage(directory, train, sources=("plain", "other"), plain=3.0, other=1.0).run(context)
    context.journal.close()
    return {name: dict(value) for name, value in facts.items()}


def test_a_stage_reads_shards_under_zero3_and_leaves_weights_any_process_can_load(tmp_path: Path) -> None:
    for name in ("plain", "other"):
        write_shards(tmp_path / name)

    facts, same_facts = run_ranks(2, _trains, tmp_path, directory=tmp_path)

    weights = load_weights(tmp_path / "out")
    assert facts == same_facts
    assert (facts["model"]["family"], facts["model"]["step"]) == ("toy", 4)
    assert {name: list(tensor.shape) for name, tensor in weights.items()} == {
        name: entry["shape"] for name, entry in facts["model"]["tensors"].items()
    }
    assert list(curve(tmp_path / "toy")) == [1, 2, 3, 4]


def test_a_stage_knows_its_steps_and_needs_a_process_group(tmp_path: Path) -> None:
    assert stage(tmp_path, toy_train(9)).steps() == 9
    assert ToyTraining.joins


@pytest.mark.parametrize(
    ("sources", "mixture", "expected"),
    [
        (("plain",), {}, {}),
        (("plain", "other"), {"plain": 1.0, "other": 2.0}, {}),
        (
            ("plain",),
            {"plain": 1.0, "oter": 1.0},
            {"config.mixture.oter": "no such entry under inputs.shards; allowed: plain"},
        ),
        (("plain",), {"plain": 0.0}, {"config.mixture.plain": "a weight must be a finite number above 0, not 0.0"}),
        (
            ("plain", "other"),
            {"plain": 1.0},
            {"config.mixture": "must weigh every entry of inputs.shards or none; missing: other"},
        ),
        ((), {}, {"inputs.shards": "training needs at least one entry"}),
    ],
)
def test_a_mixture_that_does_not_fit_the_inputs_is_a_fault(
    tmp_path: Path, sources: tuple[str, ...], mixture: dict[str, float], expected: dict[str, str]
) -> None:
    train = TrainConfig(steps=1, global_batch=1, optim=OptimConfig(lr=1.0))

    assert stage(tmp_path, train, sources=sources, **mixture).faults() == expected
