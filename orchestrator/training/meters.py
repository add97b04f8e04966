"""What a training makes of its machines: tokens, operations, memory, processors; read when a line is logged."""

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from orchestrator.records import record
from orchestrator.stage import StageContext
from orchestrator.training.config import TrainConfig
from orchestrator.training.operations import Operations

log = logging.getLogger(__name__)

GB, TERA = 1e9, 1e12
_STATUS = Path("/proc/self/status")
_HIGHEST = "VmHWM:"  # the most that was ever resident, of this program alone: `ru_maxrss` is inherited


@record
class Reading:
    """What one rank measured since the last one."""

    tokens: int  # 0 = its task knows none
    operations: float | None  # of the model; None = not counted
    busy_s: float  # of its processors, all threads of its process together
    host_memory_gb: float | None  # the most so far, of its process
    gpu_memory_gb: float | None = None  # the most so far that tensors held
    gpu_memory_reserved_gb: float | None = None  # and that torch took from the device for them
    gpu_utilisation: float | None = None  # 0..1, as the driver says


class Meters:
    """Measures this rank; asks nobody else.

    Operations are counted in micro-batches 1, 2, 4, 8, ... of an attempt, for counting slows a micro-batch down, and
    stand for all others by their tokens (where the task knows no tokens, by their samples).
    """

    def __init__(self, context: StageContext, train: TrainConfig) -> None:
        """Counts operations where it says something: on a GPU, or where the place names a peak."""
        self._device = torch.device(context.world.device)
        self._on_gpu = self._device.type == "cuda"
        self._samples = train.micro_batch_on(context.world.size)
        # compiled code shows no operations
        counts = (self._on_gpu or context.peak_tflops is not None) and train.engine.compile is None
        self._operations = Operations() if counts else None
        self._asks_driver = self._on_gpu
        self._batches, self._counted = 0, 0  # micro-batches so far; units of those that were counted
        self.restart()

    def restart(self) -> None:
        """Begins anew."""
        self._busy_s = time.process_time()
        self._tokens, self._units = 0, 0

    def computing(self, tokens: int) -> AbstractContextManager[object]:
        """Measures a `with` block as the forward and backward pass of a micro-batch of so many tokens (0 = unknown)."""
        units = tokens or self._samples
        self._batches, self._tokens, self._units = self._batches + 1, self._tokens + tokens, self._units + units
        if self._operations is None or self._batches & (self._batches - 1):
            return nullcontext()
        self._counted += units
        return self._operations

    def read(self) -> Reading:
        """Says what was measured since `restart`."""
        on_gpu = self._on_gpu
        return Reading(
            tokens=self._tokens,
            operations=self._all_operations(),
            busy_s=time.process_time() - self._busy_s,
            host_memory_gb=host_memory_gb(),
            gpu_memory_gb=torch.cuda.max_memory_allocated(self._device) / GB if on_gpu else None,
            gpu_memory_reserved_gb=torch.cuda.max_memory_reserved(self._device) / GB if on_gpu else None,
            gpu_utilisation=self._gpu_utilisation(),
        )

    def _all_operations(self) -> float | None:
        if self._operations is None or self._operations.unknown or not self._counted:
            return None
        return self._operations.counted / self._counted * self._units

    def _gpu_utilisation(self) -> float | None:
        """Asks the driver, by way of NVML's Python package where it is installed."""
        if not self._asks_driver:
            return None
        try:
            return torch.cuda.utilization(self._device) / 100
        except Exception as error:  # noqa: BLE001 - NVML has errors of its own: whatever it is, training goes on
            log.info("the driver is not asked how busy the GPU is: %s", error)
            self._asks_driver = False
            return None


def metrics_of(
    readings: Sequence[Reading], *, seconds: float, tensor_parallel: int, peak_tflops: float | None
) -> dict[str, float]:
    """Returns the metrics of all ranks together over so many seconds; what is unknown of one of them is left out.

    The table in orchestrator/README.md says what each means.

    The ranks of a tensor-parallel group read the same tokens, and each computes its share of the operations.
    """
    operations = _mean([reading.operations for reading in readings])
    tflops = None if operations is None else operations / seconds / TERA
    busy_s = _mean([reading.busy_s for reading in readings])
    found = {
        "tokens_per_s": sum(reading.tokens for reading in readings) / tensor_parallel / seconds or None,
        "tflops_per_rank": tflops,
        "mfu": None if tflops is None or peak_tflops is None else tflops / peak_tflops,
        "cpu_cores": None if busy_s is None else busy_s / seconds,
        "host_memory_gb": _most([reading.host_memory_gb for reading in readings]),
        "gpu_memory_gb": _most([reading.gpu_memory_gb for reading in readings]),
        "gpu_memory_reserved_gb": _most([reading.gpu_memory_reserved_gb for reading in readings]),
        "gpu_utilisation": _mean([reading.gpu_utilisation for reading in readings]),
    }
    return {name: value for name, value in found.items() if value is not None}


def host_memory_gb() -> float | None:
    """Returns the most memory that this process ever had resident, as the kernel says; None where it does not."""
    try:
        line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(_HIGHEST))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024 / GB


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _most(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
