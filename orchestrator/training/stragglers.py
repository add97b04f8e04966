"""Finds ranks that are slower than the others, though a step of a synchronous training takes all ranks equally long.

What a rank itself needs is measured where nobody waits for anybody: how long it waits for its own data, and how long a
small fixed computation takes on its device. From both follows what a step would take if every rank were like it:
waiting for data + the rest of the step at its own pace. All of it comes along with the log line, which gathers from all
ranks anyway.
"""

import logging
import socket
import statistics
import time
from collections.abc import Sequence

import torch

from orchestrator.records import record
from orchestrator.stage import StageContext

log = logging.getLogger(__name__)

_WIDTH = {"cpu": 192, "cuda": 2048}  # of the square matrices: about 1 ms
_WARM_UP, _FEWEST = 3, 3  # computations
_SHARE, _LONGEST_S = 0.01, 0.1  # of the time since the last look that computing may take
_IN_A_ROW = 3  # looks at which a rank must be slow: fewer may be chance


@record
class Pace:
    """What one rank needs."""

    node: str
    wait_s: float  # for its data, a step
    unit_s: float  # for the fixed computation


class Stragglers:
    """Looks at the paces of all ranks now and then, and reports the slow ones; they are left at work."""

    def __init__(self, context: StageContext) -> None:
        """Prepares the fixed computation on this rank's device."""
        self._context = context
        device = torch.device(context.world.device)
        width = _WIDTH["cuda" if device.type == "cuda" else "cpu"]
        generator = torch.Generator().manual_seed(0)  # the training's own randomness is not touched
        self._matrix = torch.rand(width, width, generator=generator).to(device)
        self._row: dict[int, int] = {}  # rank -> looks in a row at which it was slow
        self._looked = time.perf_counter()
        for _ in range(_WARM_UP):
            self._compute()

    def pace(self, wait_s: float) -> Pace:
        """Measures this rank, which waits so long for the data of a step."""
        return Pace(node=socket.gethostname(), wait_s=wait_s, unit_s=self._unit_s())

    def look(self, step: int, paces: Sequence[Pace], *, step_s: float) -> None:
        """Compares the paces of all ranks, in their order, and reports those that have become slow."""
        needs_s = needs(paces, step_s)
        median_s = statistics.median_low(needs_s)  # of two ranks the faster one
        for rank, (pace, need_s) in enumerate(zip(paces, needs_s, strict=True)):
            slow = need_s > self._context.straggler * median_s
            self._row[rank] = self._row.get(rank, 0) + 1 if slow else 0
            if self._row[rank] == _IN_A_ROW:
                self._report(step, rank, pace, paces, need_s / median_s)

    def _report(self, step: int, rank: int, pace: Pace, paces: Sequence[Pace], times: float) -> None:
        usual_wait_s = statistics.median_low(other.wait_s for other in paces)
        slowness = pace.unit_s / statistics.median_low(other.unit_s for other in paces)
        self._context.journal.append(
            "straggler", step=step, rank=rank, node=pace.node, times=times, wait_s=pace.wait_s,
            usual_wait_s=usual_wait_s, compute_times=slowness,
        )  # fmt: skip
        text = (
            f"rank {rank} ({pace.node}) needs {times:.1f} times as long for a step as the ranks' median: it waits "
            f"{pace.wait_s:.2g} s for its data (the median is {usual_wait_s:.2g} s) and computes {slowness:.1f} times "
            "as long"
        )
        self._context.progress.note(text)
        if self._context.world.is_main:
            log.warning("step %d: %s", step, text)

    def _unit_s(self) -> float:
        """Times the fixed computation, for no more than a small share of the time since the last look."""
        begun = time.perf_counter()
        until = begun + min(_LONGEST_S, _SHARE * (begun - self._looked))
        units = 0
        while units < _FEWEST or time.perf_counter() < until:
            self._compute()
            units += 1
        self._looked = time.perf_counter()
        return (self._looked - begun) / units

    def _compute(self) -> None:
        product = self._matrix @ self._matrix
        product[0, 0].item()  # waits for the device


def needs(paces: Sequence[Pace], step_s: float) -> list[float]:
    """Estimates for each rank how long a step would take if every rank were like it.

    Of the common step, what is not waiting for data is computing at the pace of the slowest.
    """
    computing_s = max(0.0, step_s - max(pace.wait_s for pace in paces))
    slowest_s = max(pace.unit_s for pace in paces)
    return [max(1e-9, pace.wait_s + computing_s * pace.unit_s / slowest_s) for pace in paces]
