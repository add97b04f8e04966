"""What torch's CPU allocator gave out while something ran: an account in which the planner of memory has no part."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")


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
