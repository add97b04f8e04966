"""What torch's CPU allocator gave out while something ran: an account in which the planner of memory has no part."""

import ctypes
import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from orchestrator.training.config import EngineConfig, OptimConfig, TrainConfig
from orchestrator.training.engine import Engine, make_engine
from orchestrator.training.task import TrainTask
from orchestrator.world import World

T = TypeVar("T")
STEPS = 3
ACCOUNT_FLAG = "FLAGS_caffe2_report_cpu_memory_usage"


def allocated(work: Callable[[], T]) -> tuple[T, int]:
    """Runs `work`; returns what it returned, and the most bytes that were alive at a time of all it asked for."""
    gc.collect()
    with _every_thread_counts(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = work()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    moments = sorted(_allocations(seen.profiler.kineto_results.experimental_event_tree()), key=lambda event: event[0])
    _, first, alive_after_it = moments[0]
    return result, max(alive for _, _, alive in moments) - (alive_after_it - first)


@contextmanager
def _every_thread_counts() -> Iterator[None]:
    """Lets the allocator's account hold what other threads free, which the profiler by itself never hears of.

    The last to let go of what ranks exchanged is sometimes a thread of gloo's: each time the sum would have stayed
    higher by that, for good. The flag has no name in Python.
    """
    flag = ctypes.c_bool.in_dll(ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libc10.so")), ACCOUNT_FLAG)
    flag.value = True
    try:
        yield
    finally:
        flag.value = False


def _allocations(events: Iterable[Any]) -> Iterator[tuple[int, int, int]]:
    """Yields of each change of memory its time, its bytes (< 0: freed) and the bytes alive after it."""
    for event in events:
        if event.tag == _EventType.Allocation and event.typed[1].device.type == "cpu":
            yield event.start_time_ns, event.typed[1].alloc_size, event.typed[1].total_allocated
        yield from _allocations(event.children)


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
