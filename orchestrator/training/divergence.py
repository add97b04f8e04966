"""What becomes of a step whose loss or gradients leave all bounds: training stops, leaves it out, or goes back first.

A step that is left out changes nothing: no weight, no moment, no buffer; the rate and the order of the data go on by
its number. So a run that left it out as it came by, one that went back to a checkpoint because of it, and one that knew
it from the beginning have the same curve. Which steps are left out stands in the journal:
`{"event": "left_out", "step": n, "policy": "skip" | "roll_back", "why": ..., "samples": [...]}`; a resumed attempt, on
any number of ranks, leaves them out as well, also where its checkpoint is older. What a spike is compared with, the
losses and norms of the steps before, comes from the journal too. No rank but the first needs it.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Literal

from torch import Tensor, nn

from orchestrator.errors import Diverged, OrchError
from orchestrator.journal import JOURNAL, read_events
from orchestrator.stage import StageContext
from orchestrator.training.config import DivergenceConfig
from orchestrator.training.holdings import saved_buffers

log = logging.getLogger(__name__)

EVENT = "left_out"
_NAMED = 5  # samples named in a message; the journal names all
_NORMAL = 1.4826  # the standard deviation of a normal distribution over its median absolute deviation
_LEAST_SPREAD = 1e-3  # of the median: losses that hardly move are no reason to call the next one a spike

Verdict = Literal["fine", "left out", "go back"]


class Divergence:
    """Judges every step, the same on all ranks, and knows which steps are left out."""

    def __init__(self, config: DivergenceConfig, model: nn.Module, context: StageContext) -> None:
        """Judges the steps of a model's training."""
        self._config, self._context = config, context
        self._buffers = [buffer for _, buffer in saved_buffers(model)] if config.goes_on else []
        self._kept: list[Tensor] = []
        self._before: dict[str, deque[float]] = {}
        self._fault, self._nonfinite = "", False
        self.left_out: dict[int, str] = {}  # step -> why

    def resume(self, step: int) -> None:
        """Goes on where the journal was after a step. Collective: every rank must call."""
        found = self._told_before(step) if self._context.world.is_main else None
        left_out, losses, norms = self._context.world.broadcast(found or ({}, [], []))
        self.left_out |= left_out
        self._before = {
            "loss": deque(losses, maxlen=self._config.window),
            "norm": deque(norms, maxlen=self._config.window),
        }

    def begin(self) -> None:
        """Starts a step: what its forward pass does to buffers can be taken back."""
        self._kept = [buffer.clone() for buffer in self._buffers]

    def look(self, step: int, loss: float, broken: Sequence[int]) -> None:
        """Judges the loss of a step, a mean over all ranks; it is not finite on those in `broken`."""
        self._fault, self._nonfinite = "", bool(broken)
        if broken:
            self._fault = f"the loss of step {step} is not finite on rank {', '.join(map(str, broken))}"
        elif self._config.on_spike != "ignore":
            self._fault = self._spike(step, "loss", loss, self._config.spike_factor)

    def accepts(self, step: int, norm: float) -> bool:
        """Judges the norm of the gradients before clipping; tells whether the weights may be updated by them."""
        if not self._fault and not math.isfinite(norm):
            self._fault, self._nonfinite = f"the gradients of step {step} are not finite", True
        elif not self._fault and self._config.on_spike != "ignore":
            self._fault = self._spike(step, "norm", norm, self._config.norm_factor)
        return not self._fault

    def settle(self, step: int, loss: float, norm: float, names: Callable[[], Sequence[str]]) -> Verdict:
        """Does what the policy says about the step just judged; raises Diverged where that is to stop.

        `names` tells this rank's samples of the step. Collective: every rank must call.
        """
        if not self._fault:
            self._before["loss"].append(loss)
            if math.isfinite(norm):  # with fp16 an overflow is no fault
                self._before["norm"].append(norm)
            return "fine"
        policy = self._config.on_nonfinite if self._nonfinite else self._config.on_spike
        samples = [name for of_rank in self._context.world.gather(_told(names)) for name in of_rank]
        what = f"{self._fault}; no weight was updated by it; its samples: {_some(samples)}"
        if policy == "stop":
            self._stop(step, samples, f"{what}. {_ADVICE}")
        if len(self.left_out) >= self._config.most:
            self._stop(step, samples, f"{what}. {len(self.left_out)} steps are left out already, {_most(self._config)}")
        self._context.journal.append(EVENT, step=step, policy=policy, why=self._fault, samples=samples)
        self.left_out[step] = self._fault
        if self._context.world.is_main:
            goes = "its update is left out" if policy == "skip" else "back to the last checkpoint, then without it"
            log.warning("%s; %s", what, goes)
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            buffer.copy_(kept)
        return "left out" if policy == "skip" else "go back"

    def refuse_the_beginning(self) -> None:
        """Ends a training that would go back to a checkpoint where there is none yet."""
        step, why = next(reversed(self.left_out.items()))
        raise Diverged(
            f"{why}, and there is no checkpoint before step {step} to go back to; a shorter train.save.every_steps, "
            "or train.divergence: skip, would have helped"
        )

    def _stop(self, step: int, samples: Sequence[str], what: str) -> None:
        self._context.journal.append("diverged", step=step, why=self._fault, samples=list(samples))
        raise Diverged(f"{what} All samples: the diverged event in {self._context.directory / JOURNAL}")

    def _spike(self, step: int, what: Literal["loss", "norm"], value: float, factor: float) -> str:
        before = self._before[what]
        if len(before) < self._config.window or (height := robust_z(value, before)) <= factor:
            return ""
        named = "loss" if what == "loss" else "norm of the gradients"
        return (
            f"the {named} of step {step} is {value:.4g}, {height:.1f} robust standard deviations above the median "
            f"{median(before):.4g} of the {len(before)} steps before"
        )

    def _told_before(self, step: int) -> tuple[dict[int, str], list[float], list[float]]:
        """Reads the journal: all steps that were left out, and the last losses and norms until a step."""
        left_out: dict[int, str] = {}
        told: dict[int, Mapping[str, float]] = {}
        for event in read_events(self._context.directory):
            if event.get("event") == EVENT:
                left_out[event["step"]] = event["why"]
            elif event.get("event") == "loss" and event["step"] <= step:
                told[event["step"]] = event  # a later attempt knows better
        taken = [told[at] for at in sorted(told) if at not in left_out]
        losses = [event["value"] for event in taken][-self._config.window :]
        norms = [event["norm"] for event in taken if event.get("norm") is not None][-self._config.window :]
        return left_out, losses, norms


_ADVICE = "A lower train.optim.lr, a longer warmup_steps or a lower clip_norm usually helps."


def robust_z(value: float, before: Sequence[float] | deque[float]) -> float:
    """Returns how many robust standard deviations a value lies above the median of others."""
    middle = median(before)
    spread = _NORMAL * median(abs(other - middle) for other in before)
    return (value - middle) / max(spread, _LEAST_SPREAD * abs(middle), 1e-12)


def _told(names: Callable[[], Sequence[str]]) -> list[str]:
    try:
        return list(names())
    except (OrchError, OSError) as error:  # the other ranks wait for an answer
        return [f"those of a rank that cannot read them again ({error})"]


def _some(samples: Sequence[str]) -> str:
    more = f" and {len(samples) - _NAMED} more" if len(samples) > _NAMED else ""
    return (", ".join(samples[:_NAMED]) or "unknown") + more


def _most(config: DivergenceConfig) -> str:
    return f"as many as train.divergence.most = {config.most} allows."
