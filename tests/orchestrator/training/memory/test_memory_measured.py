"""What the planner says of a rank's memory, against what torch's allocator gave out and what the engines hold."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.training.config import TrainConfig
from orchestrator.training.engine import Engine, make_engine
from orchestrator.training.memory.measure import Request, measure
from orchestrator.training.memory.zero import Footprint, footprint, setting_of
from orchestrator.world import World
from tests.allocations import allocated
from tests.ranks import run_ranks
from tests.toys import ToyStream, ToyTask, toy_engine, toy_train
from tests.toysitting import GROUPING

WIDTH, DEPTH, LENGTH, TOLERANCE = 192, 3, 11, 0.06
STEPS = 3  # DeepSpeed knows the order of modules from the second on
LONG = pytest.mark.long
pytestmark = pytest.mark.slow


def train_config(**engine: Any) -> TrainConfig:
    # buckets that hold the toy, and a batch whose activations weigh as much as its weights
    return toy_train(STEPS, global_batch=256, engine=toy_engine(**{"bucket_elements": 1_000_000, **engine}))


def predicted(train: TrainConfig, ranks: int) -> Footprint:
    request = Request(
        opener="tests.toysitting:open_toy", plain={"width": WIDTH, "depth": DEPTH, "length": LENGTH}, learning=("*",),
        precision=train.engine.precision, recomputes=False, eager=False, on_gpu=False, optim=GROUPING,
    )  # fmt: skip
    return footprint(measure(request), setting_of(train, ranks, on_gpu=False))


def trained(world: World, train: TrainConfig) -> tuple[Engine, int]:
    """Trains a few steps as the loop does; returns the engine, and the most bytes that were alive."""
    torch.set_num_threads(1)

    def work() -> Engine:
        task = ToyTask(width=WIDTH, depth=DEPTH)
        engine = make_engine(task, train, trainable=("*",), world=world, seed=1)
        batches = ToyStream(train, world).batches(task.collate, start_step=0, steps=STEPS)
        for _ in range(STEPS):
            for _ in range(engine.accumulation):
                losses = task.loss(engine.module, next(batches))
                engine.backward(losses.total)
            engine.step()
        return engine

    return allocated(work)


def held_by_zero_3(world: World, train: TrainConfig) -> dict[str, float]:
    engine, most = trained(world, train)
    inner: Any = engine.module.optimizer  # type: ignore[union-attr]  # DeepSpeed's
    states = [inner.optimizer.state[flat] for flat in inner.fp32_partitioned_groups_flat]
    return {
        "weights": sum(_bytes(p.ds_tensor) for p in engine.model.parameters())  # type: ignore[attr-defined]
        + sum(_bytes(buffer) for buffer in engine.model.buffers()),
        "gradients": _bytes(inner.grad_partitions_flat_buffer),
        "optimizer": sum(_bytes(flat) for flat in inner.fp32_partitioned_groups_flat)
        + sum(_bytes(state[name]) for state in states for name in ("exp_avg", "exp_avg_sq")),
        "buckets": sum(_bytes(bucket.buffer) for bucket in inner.ipg_buckets.values()),
        "peak": most,
    }


def most_bytes(world: World, train: TrainConfig) -> int:
    return trained(world, train)[1]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("micro_batch", [256, 64])
def test_a_replica_needs_what_is_predicted(micro_batch: int) -> None:
    train = replace(train_config(name="torch"), micro_batch=micro_batch)
    engine, most = trained(World.alone(), train)
    said = predicted(train, 1)

    optimizer: Any = engine._optimizer  # type: ignore[attr-defined]
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert sum(map(_bytes, [*engine.model.parameters(), *engine.model.buffers()])) == said.weights
    assert sum(map(_bytes, moments)) == said.optimizer
    assert most == pytest.approx(said.total, rel=TOLERANCE)


def test_replicas_average_one_long_vector(tmp_path: Path) -> None:
    train = train_config(name="torch")

    for most in run_ranks(2, most_bytes, train, directory=tmp_path):
        assert most == pytest.approx(predicted(train, 2).total, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("ranks", "precision"),
    [(2, "bf16"), (1, "bf16"), pytest.param(2, "fp32", marks=LONG), pytest.param(1, "fp32", marks=LONG)],
)
def test_zero_3_needs_what_is_predicted_and_holds_it_to_the_byte(tmp_path: Path, ranks: int, precision: str) -> None:
    train = train_config(name="deepspeed", precision=precision, persistence_threshold=0)
    said = predicted(train, ranks)

    for held in run_ranks(ranks, held_by_zero_3, train, directory=tmp_path):
        assert {name: held[name] for name in ("weights", "gradients", "optimizer", "buckets")} == {
            "weights": said.weights, "gradients": said.gradients, "optimizer": said.optimizer, "buckets": said.buckets,
        }  # fmt: skip
        assert held["peak"] == pytest.approx(said.total, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("zero_stage", "precision"),
    [(1, "bf16"), (2, "bf16"), pytest.param(1, "fp32", marks=LONG), pytest.param(2, "fp32", marks=LONG)],
)
def test_zero_1_and_2_need_what_is_predicted(tmp_path: Path, zero_stage: int, precision: str) -> None:
    train = train_config(name="deepspeed", precision=precision, zero_stage=zero_stage)

    for most in run_ranks(2, most_bytes, train, directory=tmp_path):
        assert most == pytest.approx(predicted(train, 2).total, rel=TOLERANCE)
