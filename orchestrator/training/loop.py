"""The one training loop."""

import hashlib
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch

from orchestrator.data.stream import Drawn, Loss
from orchestrator.errors import Diverged, Preempted
from orchestrator.records import record
from orchestrator.stage import StageContext
from orchestrator.training.checkpoints import Checkpoints
from orchestrator.training.config import TrainConfig
from orchestrator.training.damage import Damage
from orchestrator.training.engine import Engine
from orchestrator.training.saving import Saver
from orchestrator.training.stragglers import Stragglers
from orchestrator.training.symmetry import Guard
from orchestrator.training.task import TrainTask

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")


class Batches(Protocol):
    """Where micro-batches come from: a pure function of the step, so that a step number is all there is to resume."""

    def batches(self, collate: Callable[[Sequence[Drawn]], Batch], *, start_step: int, steps: int) -> Iterator[Batch]:
        """Yields this rank's micro-batches of the `steps` steps from `start_step` on, in order."""

    def take_losses(self) -> Sequence[Loss]:
        """Returns what was lost from the micro-batches since it was last asked."""

    def drawn_before(self, step: int) -> int:
        """Counts the samples that all ranks together draw before a step."""


def fit(
    task: TrainTask[Batch], engine: Engine, stream: Batches, *, train: TrainConfig, checkpoints: Checkpoints,
    context: StageContext,
) -> int:  # fmt: skip
    """Trains until all steps are done and returns their number; when asked to stop, saves and raises Preempted.

    Collective: every rank must call, with the same arguments, and leaves at the same step.
    """
    start = checkpoints.resume(engine)
    damage = Damage(context, limit=train.max_bad_fraction, step=start)
    context.journal.append("begun", step=start)
    window, stragglers = _Window(), Stragglers(context)
    stream = _read_once(stream, train, engine)
    batches = stream.batches(task.collate, start_step=start, steps=train.steps - start)
    since_save = _Means()
    context.progress.enter("data")
    with Guard(engine.model, task.uneven, context.world, context.fail) as guard, checkpoints.saver:
        for step in range(start + 1, train.steps + 1):
            seed_step(context.seed, step, train.reader(context.world.rank))
            guard.begin(step)
            losses = _learn(task, engine, batches, window, guard, context)
            context.progress.enter("agreeing")
            seen = _agree(losses, stream.take_losses(), step, checkpoints.saver, context)
            damage.take(step, seen.lost, drawn=stream.drawn_before(step))
            context.progress.enter("backward")
            window.save_wait_s = checkpoints.saver.before_update()
            engine.step()
            guard.end()
            _refuse_not_finite(engine.scalars(), step)
            window.add(seen.losses, train.global_batch)
            since_save.add(seen.losses)
            bad = {"bad_samples": damage.lost, "bad_fraction": damage.lost / stream.drawn_before(step)}
            _tell(step, seen, window, {**engine.scalars(), **bad}, train, context, stragglers)
            if step == start + 1:
                checkpoints.refuse_unknown_metric({**seen.losses, **engine.scalars()})
            stopping = seen.stop and step < train.steps
            if stopping or checkpoints.saves_at(step):
                measured = {**since_save.take(), **engine.scalars()}
                saved = _saved(engine, step, checkpoints, context, measured, wait=stopping or step == train.steps)
                window.restart()
                if stopping or (step == train.steps and not saved):
                    kept = "everything is saved" if saved else "there was no time to save it"
                    raise Preempted(f"stopped after step {step} of {train.steps}; {kept}")
    context.progress.enter("ending")
    return train.steps


def _read_once(stream: Batches, train: TrainConfig, engine: Engine) -> Batches:
    """Lets one rank of a tensor-parallel group read for all of it."""
    if train.engine.tensor_parallel == 1:
        return stream
    from orchestrator.training.parallel.reading import OneReader

    return OneReader(stream, accumulation=engine.accumulation)


def _saved(
    engine: Engine, step: int, checkpoints: Checkpoints, context: StageContext, measured: Mapping[str, float], *,
    wait: bool,
) -> bool:  # fmt: skip
    """Saves, if there is time for it before this process is killed; goes on meanwhile unless told to wait.

    Collective: every rank must call.
    """
    context.progress.enter("saving")
    began = time.perf_counter()
    checkpoints.saver.make_way(step)
    left_s = context.time_left_s()
    if not checkpoints.fits(left_s):
        log.warning(
            "step %d is not saved: a save takes up to %.1f s here, and there may be no more than %.1f s left",
            step, checkpoints.save_s, left_s,
        )  # fmt: skip
        context.journal.append("unsaved", step=step, save_s=checkpoints.save_s, left_s=left_s)
        context.progress.enter("data")
        return False
    checkpoints.save(engine, step, measured)
    if wait:
        checkpoints.saver.finish()
    context.journal.append("stood_still", step=step, seconds=time.perf_counter() - began)
    context.progress.enter("data")
    return True


def seed_step(seed: int, step: int, rank: int) -> None:
    """Makes all randomness of a step (dropout above all) a function of seed, step and rank: nothing to save."""
    number = int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:8])
    torch.manual_seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 - libraries below us draw from the global generators
    random.seed(number)


@record
class _Seen:
    """What all ranks together saw in a step."""

    losses: Mapping[str, float]  # means over ranks and micro-batches; "loss" is what was minimised
    lost: Sequence[Loss]
    stop: bool


def _learn(
    task: TrainTask[Batch], engine: Engine, batches: Iterator[Batch], window: "_Window", guard: Guard,
    context: StageContext,
) -> dict[str, float]:  # fmt: skip
    """Runs the micro-batches of a step; returns this rank's mean losses. Collective: every rank must call."""
    sums: dict[str, torch.Tensor] = {}
    window.begin_step()
    for _ in range(engine.accumulation):
        context.progress.enter("data")
        with window.waiting():
            batch = next(batches)
        context.progress.enter("forward")
        guard.forward(task.runs(batch))
        losses = task.loss(engine.module, batch)
        context.progress.enter("backward")
        engine.backward(guard.backward(losses.total))
        for name, value in {"loss": losses.total.detach(), **_prefixed(losses.terms)}.items():
            sums[name] = sums[name] + value.double() if name in sums else value.double()
    guard.agree()
    return {name: value.item() / engine.accumulation for name, value in sums.items()}


def _agree(losses: Mapping[str, float], lost: Sequence[Loss], step: int, saver: Saver, context: StageContext) -> _Seen:
    """Averages the losses, agrees whether to stop, tells what was lost and lets a save under way go on.

    One collective, a second one for a step that lost samples, one more where a save ends. Collective: every rank must
    call.
    """
    flags = {"?finite": float(not math.isfinite(losses["loss"])), "?stop": float(context.stop()), "?lost": len(lost)}
    signs = saver.signs()
    means = context.world.mean({**losses, **flags, **signs})
    broken, stop, anything = means.pop("?finite"), means.pop("?stop"), means.pop("?lost")
    saver.follow({name: means.pop(name) for name in signs})
    if anything > 0:
        lost = [loss for of_rank in context.world.gather(list(lost)) for loss in of_rank]
    if broken > 0:
        ranks = [rank for rank, value in enumerate(context.world.gather(losses["loss"])) if not math.isfinite(value)]
        raise Diverged(
            f"the loss of step {step} is not finite on rank {', '.join(map(str, ranks))}; no weight was updated. "
            "A lower train.optim.lr, a longer warmup_steps or a lower clip_norm usually helps"
        )
    return _Seen(losses=means, lost=lost, stop=stop > 0)


def _refuse_not_finite(scalars: Mapping[str, float], step: int) -> None:
    if not math.isfinite(scalars["grad_norm"]):
        raise Diverged(
            f"the gradients of step {step} are not finite; the checkpoints before it are not touched by this"
        )


def _tell(
    step: int, seen: _Seen, window: "_Window", scalars: Mapping[str, float], train: TrainConfig, context: StageContext,
    stragglers: Stragglers,
) -> None:  # fmt: skip
    """Tells journal and progress about a step. Collective: every rank must call."""
    # every step, in full precision: two curves can be compared bit for bit
    waits = {"data_wait_s": window.step_wait_s()}
    waits |= {"save_wait_s": window.save_wait_s} if window.save_wait_s > 0 else {}
    context.journal.append("loss", step=step, value=seen.losses["loss"], **waits)
    shown = {"samples_per_s": window.samples_per_s(), "data_wait_share": window.wait_share()}
    bad = {"bad_samples": scalars["bad_samples"]} if scalars["bad_samples"] else {}
    context.progress.advance(step, train.steps, "step", loss=seen.losses["loss"], **bad, **shown)
    if step % train.log_every and step != train.steps:
        return
    step_s = window.step_s()
    wait_s = stragglers.look(step, wait_s=window.wait_s(), step_s=step_s)  # of all ranks the longest: the others wait
    shown |= {"data_wait_s": wait_s, "data_wait_share": wait_s / step_s}
    values = {**window.means(), **scalars, **shown}
    context.journal.metrics(step, values)
    if context.world.is_main:
        log.info(
            "step %d of %d: %s", step, train.steps, ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        )
    window.restart()


class _Window:
    """Adds up what happened since the last log line."""

    def __init__(self) -> None:
        self.save_wait_s = 0.0  # of the last step: until what it changes was copied
        self.restart()

    def restart(self) -> None:
        self._since, self._wait_s, self._samples, self._steps = time.perf_counter(), 0.0, 0, 0
        self._losses = _Means()

    def begin_step(self) -> None:
        self._waited_before_s = self._wait_s

    def add(self, losses: Mapping[str, float], samples: int) -> None:
        self._samples, self._steps = self._samples + samples, self._steps + 1
        self._losses.add(losses)

    def waiting(self) -> "_Waiting":
        return _Waiting(self)

    def waited(self, seconds: float) -> None:
        self._wait_s += seconds

    def means(self) -> dict[str, float]:
        return self._losses.means()

    def samples_per_s(self) -> float:
        return self._samples / max(time.perf_counter() - self._since, 1e-9)

    def step_wait_s(self) -> float:
        """Returns how long the last step waited for its data."""
        return self._wait_s - self._waited_before_s

    def wait_s(self) -> float:
        """Returns how long a step waited for its data."""
        return self._wait_s / self._steps

    def step_s(self) -> float:
        """Returns how long a step took."""
        return max(time.perf_counter() - self._since, 1e-9) / self._steps

    def wait_share(self) -> float:
        return self.wait_s() / self.step_s()


class _Means:
    """The means of the losses over the steps since they were last taken."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0

    def add(self, losses: Mapping[str, float]) -> None:
        self._steps += 1
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: value / self._steps for name, value in self._sums.items()}

    def take(self) -> dict[str, float]:
        means, self._sums, self._steps = self.means(), {}, 0
        return means


class _Waiting:
    """Measures the time inside a `with` block."""

    def __init__(self, window: _Window) -> None:
        self._window = window

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._window.waited(time.perf_counter() - self._started)


def _prefixed(terms: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"loss/{name}": value for name, value in terms.items()}
