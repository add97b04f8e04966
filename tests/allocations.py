"""What torch's CPU allocator gave out while something ran: an account in which the planner of memory has no part."""

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from orchestrator.training.config import EngineConfig, OptimConfig, TrainConfig
from orchestrator.training.engine import Engine, make_engine
from orchestrator.training.task import TrainTask
from orchestrator.world import World

T = TypeVar("T")
STEPS = 3


def allocated(work: Callable[[], T]) -> tuple[T, int]:
    """Runs `work`; returns what it returned, and the most bytes that were alive at a time of all it asked for."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        result = work()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.device_type() == torch._C._autograd.DeviceType.CPU:
            alive += event.nbytes()
            most = max(most, alive)
    return result, most


def train_config(samples: int, **engine: Any) -> TrainConfig:
    """Says how a model is trained whose memory is measured."""
    fields = {"name": "torch", "precision": "fp32", "bucket_elements": 500_000, **engine}
    return TrainConfig(steps=STEPS, global_batch=samples, optim=OptimConfig(lr=1e-3), engine=EngineConfig(**fields))


def train_a_little(
    task: TrainTask[Any], train: TrainConfig, world: World, learning: tuple[str, ...], batch: Callable[[], Any]
) -> tuple[Engine, int]:
    """Trains a few steps, a new batch each; returns the engine, and the most bytes that were alive at a time."""
    torch.set_num_threads(1)

    def work() -> Engine:
        engine = make_engine(task, train, trainable=learning, world=world, seed=1)
        for _ in range(STEPS):
            engine.backward(task.loss(engine.module, batch()).total)
            engine.step()
        return engine

    return allocated(work)
