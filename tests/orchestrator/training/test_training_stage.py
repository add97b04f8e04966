"""A training stage from shards to a finished checkpoint, as the worker runs it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.artifacts import Checkpoint, Shards
from orchestrator.data.rules import BucketRule, OrderRules, PackRule
from orchestrator.data.stream import Drawn
from orchestrator.data.writer import ShardWriter
from orchestrator.errors import InputError
from orchestrator.records import record
from orchestrator.resources import Resources
from orchestrator.stage import StageContext
from orchestrator.training.config import AverageConfig, DivergenceConfig, OptimConfig, TrainConfig
from orchestrator.training.stage import TrainingStage
from orchestrator.training.task import Losses
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


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[StageContext]:
    context = toy_context(tmp_path / "toy", World.alone())
    yield context
    context.journal.close()


def stage(
    directory: Path,
    train: TrainConfig,
    *,
    sources: tuple[str, ...] = ("plain",),
    cls: type[ToyTraining] = ToyTraining,
    **mixture: float,
) -> ToyTraining:
    shards = {name: Shards(directory / name) for name in sources}
    config = ToyTraining.Config(train=train, mixture=mixture)
    outputs = ToyTraining.Outputs(model=Checkpoint(directory / "run" / "toy" / "model"))
    return cls(config, ToyTraining.Inputs(shards=shards), outputs)


class FamilyTraining(ToyTraining):
    """The same, of a family."""

    family = "toys"


def test_a_checkpoint_of_another_family_is_refused_before_it_is_made(tmp_path: Path) -> None:
    wanted = stage(tmp_path, toy_train(), cls=FamilyTraining)

    assert "'glamm'; allowed: toys" in wanted.faults_given({"model": {"family": "glamm"}})["inputs.model"]
    assert wanted.faults_given({"model": {"family": "toys"}}) == wanted.faults_given({}) == {}


class MeasuringToyTask(ToyTask):
    """Measures a sample by its first letter."""

    def length_of(self, source: str, key: str, members: Mapping[str, bytes]) -> int:  # noqa: ARG002 - the name is given
        return 1 + members["letters"][0]

    def collate(self, drawn: Sequence[Drawn]) -> Tensor:
        lengths = [sample.members["letters"][0] for sample in drawn]
        assert max(lengths) - min(lengths) <= 2, "a bucket is of near-equal length"
        return super().collate(drawn)


class MeasuringToyTraining(ToyTraining):
    """Teaches the toy from real shards, in buckets if it is asked to."""

    measures = True

    def build_task(self) -> "TrainTask[Any]":
        return MeasuringToyTask()


class HarmedTask(ToyTask):
    """Finds no loss for batches with a certain sample."""

    def collate(self, drawn: Sequence[Drawn]) -> Any:
        return super().collate(drawn), any(sample.key == "7-0" for sample in drawn)

    def loss(self, model: nn.Module, batch: Any) -> Losses:
        letters_BL, harmed = batch
        losses = super().loss(model, letters_BL)
        return Losses(total=losses.total * float("nan") if harmed else losses.total, terms=losses.terms)


class HarmedToyTraining(ToyTraining):
    """Teaches the toy from real shards, one sample of which does harm."""

    def build_task(self) -> "TrainTask[Any]":
        return HarmedTask()


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

    weights = load_weights(tmp_path / "run" / "toy" / "model")
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


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (
            OrderRules(max_epochs={"plain": 3, "nobody": 2}),
            {"config.train.order.max_epochs.nobody": "no such entry under inputs.shards; allowed: plain"},
        ),
        (
            OrderRules(pack=PackRule(budget=9)),
            {"config.train.order.pack": "this stage does not put several samples into one sequence; allowed: null"},
        ),
        (
            OrderRules(bucket=BucketRule(size=4)),
            {"config.train.order.bucket": "this stage does not measure its samples; allowed: null"},
        ),
        (
            OrderRules(max_epochs={"plain": 3}),  # 30 samples: 90 in 7 steps of 12
            {
                "config.train.order.max_epochs": "max_epochs ends the data after 7 steps of 12 samples, "
                "but 8 steps are to be trained (plain: 3 epochs of 30 samples are 84 in 7 steps); "
                "allowed: fewer steps, more epochs, or a source without max_epochs"
            },
        ),
    ],
)
def test_an_order_that_cannot_be_is_a_fault_before_anything_runs(
    tmp_path: Path, order: OrderRules, expected: dict[str, str]
) -> None:
    write_shards(tmp_path / "plain")

    assert stage(tmp_path, toy_train(8, order=order)).faults() == expected


def test_temperature_beside_weights_and_buckets_that_do_not_divide_the_batch_are_faults(tmp_path: Path) -> None:
    order = OrderRules(temperature=2.0, bucket=BucketRule(size=5))

    assert stage(tmp_path, toy_train(8, order=order), cls=MeasuringToyTraining, plain=1.0).faults() == {
        "config.train.order.temperature": "makes weights of the sizes: leave mixture empty, or temperature null",
        "config.train.order.bucket.size": "global_batch = 12 is no multiple of 5",
    }


def test_what_this_run_makes_is_not_counted_before_it_runs(tmp_path: Path) -> None:
    write_shards(tmp_path / "run" / "convert" / "plain")  # of an earlier launch: it may be made anew, and larger
    train = toy_train(8, order=OrderRules(max_epochs={"plain": 3}))

    found = stage(tmp_path, train)
    found.inputs.shards["plain"] = Shards(tmp_path / "run" / "convert" / "plain")

    assert found.faults() == {}


def _trains_in_buckets(world: World, directory: Path) -> list[str]:
    context = toy_context(directory / "toy", world)
    train = toy_train(6, order=OrderRules(bucket=BucketRule(size=3)), micro_batch=3)
    stage(directory, train, cls=MeasuringToyTraining).run(context)
    context.journal.close()
    return sorted(path.name for path in (directory / "toy" / "units" / "00").iterdir())


def test_a_stage_measures_plans_and_draws_in_buckets(tmp_path: Path) -> None:
    write_shards(tmp_path / "plain")

    files, _ = run_ranks(2, _trains_in_buckets, tmp_path, directory=tmp_path)

    assert files == ["lengths.json", "lengths.npy", "members.npy", "plan.json", "starts.npy"]
    assert list(curve(tmp_path / "toy")) == [1, 2, 3, 4, 5, 6]
    order = json.loads((tmp_path / "toy" / "order.json").read_text())
    assert order["fingerprint"] == "f" * 12


def test_a_stage_that_would_go_on_in_another_order_is_refused(tmp_path: Path, alone: StageContext) -> None:
    write_shards(tmp_path / "plain")
    began = {"fingerprint": alone.fingerprint, "digest": "0" * 64}
    (tmp_path / "toy" / "order.json").write_text(json.dumps(began))

    with pytest.raises(
        InputError, match=r"order\.json: the data would come in another order than when this stage began"
    ):
        stage(tmp_path, toy_train(2)).run(alone)
    assert json.loads((tmp_path / "toy" / "order.json").read_text()) == began


def test_a_stage_of_another_fingerprint_begins_its_own_order(tmp_path: Path, alone: StageContext) -> None:
    write_shards(tmp_path / "plain")
    (tmp_path / "toy" / "order.json").write_text(json.dumps({"fingerprint": "e" * 12, "digest": "0" * 64}))

    stage(tmp_path, toy_train(2, engine=toy_engine("torch"))).run(alone)

    assert json.loads((tmp_path / "toy" / "order.json").read_text())["fingerprint"] == alone.fingerprint


def test_data_that_ends_before_training_is_refused_before_the_model_is_built(
    tmp_path: Path, alone: StageContext
) -> None:
    write_shards(tmp_path / "plain")
    train = toy_train(8, order=OrderRules(max_epochs={"plain": 3}))

    with pytest.raises(InputError, match="max_epochs ends the data after 7 steps of 12 samples, but 8 steps"):
        stage(tmp_path, train).run(alone)
    assert not (tmp_path / "toy" / "order.json").exists()


def test_the_average_becomes_the_output_where_a_recipe_wants_it(tmp_path: Path, alone: StageContext) -> None:
    write_shards(tmp_path / "plain")
    train = toy_train(4, average=AverageConfig(decay=0.5, export=True))

    stage(tmp_path, train).run(alone)

    output = load_weights(tmp_path / "run" / "toy" / "model")
    last = load_weights(tmp_path / "toy" / "checkpoints" / "step_00000004")
    moved = {name for name in last if not torch.equal(output[name], last[name])}
    assert {"head.weight", "blocks.0.query.weight"} <= moved
    assert {"embedding.weight", "norm.bias", "seen"}.isdisjoint(moved)


def test_a_step_that_does_harm_names_its_samples_in_their_tars(tmp_path: Path, alone: StageContext) -> None:
    write_shards(tmp_path / "plain")
    train = toy_train(4, divergence=DivergenceConfig(on_nonfinite="skip"))

    stage(tmp_path, train, cls=HarmedToyTraining).run(alone)

    journal = (tmp_path / "toy" / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    told = next(event for event in map(json.loads, journal) if event["event"] == "left_out")
    assert len(told["samples"]) == train.global_batch
    assert any(sample.startswith("plain: ") and sample.endswith(": 7-0") for sample in told["samples"])


def test_what_nodes_without_gpus_cannot_do_is_a_fault_of_the_plan(tmp_path: Path) -> None:
    train = toy_train(4, engine=toy_engine("deepspeed", precision="fp16"))

    planned = stage(tmp_path, train)

    assert list(planned.faults_on(Resources())) == ["config.train.engine.precision"]
    assert planned.faults_on(Resources(gpus_per_node=8)) == {}


def test_nodes_whose_ranks_form_no_tensor_parallel_groups_are_a_fault_of_the_plan(tmp_path: Path) -> None:
    planned = stage(tmp_path, toy_train(4, global_batch=12, engine=toy_engine(tensor_parallel=2)))

    odd, many = (planned.faults_on(Resources(nodes=nodes, gpus_per_node=5)) for nodes in (1, 2))

    assert odd == {"config.train.engine.tensor_parallel": "5 ranks do not form groups of 2; allowed: 1, 5"}
    assert list(many) == ["config.train.global_batch"]
    assert planned.faults_on(Resources(nodes=3, gpus_per_node=4)) == {}
