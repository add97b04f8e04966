"""The one training loop."""

import hashlib
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from orchestrator.data.stream import Drawn, Loss
from orchestrator.errors import Preempted
from orchestrator.records import record
from orchestrator.stage import StageContext
from orchestrator.training.checkpoints import Checkpoints
from orchestrator.training.config import TrainConfig
from orchestrator.training.damage import Damage
from orchestrator.training.divergence import Divergence
from orchestrator.training.engine import Engine
from orchestrator.training.meters import Meters, metrics_of
from orchestrator.training.saving import Saver
from orchestrator.training.stragglers import Stragglers
from orchestrator.training.symmetry import Guard
from orchestrator.training.task import TrainTask
from orchestrator.training.window import Means, Window

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

    def names_of(self, step: int) -> Sequence[str]:
        """Names this rank's samples of a step, counted from 1."""


def fit(
    task: TrainTask[Batch], engine: Engine, stream: Batches, *, train: TrainConfig, checkpoints: Checkpoints,
    context: StageContext,
) -> int:  # fmt: skip
    """Trains until all steps are done and returns their number; when asked to stop, saves and raises Preempted.

    A step whose loss or gradients leave all bounds is dealt with as `train.divergence` says; raises Diverged.
    Collective: every rank must call, with the same arguments, and leaves at the same step.
    """
    stream = _read_once(stream, train, engine)
    divergence = Divergence(train.divergence, engine.model, context)
    with Guard(engine.model, task.uneven, context.world, context.fail) as guard, checkpoints.saver:
        training = _Training(task, engine, stream, train, checkpoints, context, guard, divergence)
        while not training.run_from(checkpoints.resume(engine)):
            pass  # it goes back to the last checkpoint
    context.progress.enter("ending")
    return train.steps


def _read_once(stream: Batches, train: TrainConfig, engine: Engine) -> Batches:
    """Lets one rank of a tensor-parallel group read for all of it."""
    if train.engine.tensor_parallel == 1:
        return stream
    from orchestrator.training.parallel.reading import OneReader

    return OneReader(stream, accumulation=engine.accumulation)


class _Training(Generic[Batch]):
    """The steps of one attempt."""

    def __init__(
        self, task: TrainTask[Batch], engine: Engine, stream: Batches, train: TrainConfig, checkpoints: Checkpoints,
        context: StageContext, guard: Guard, divergence: Divergence,
    ) -> None:  # fmt: skip
        self._task, self._engine, self._stream, self._train = task, engine, stream, train
        self._checkpoints, self._context, self._guard, self._divergence = checkpoints, context, guard, divergence
        self._window, self._since_save, self._stragglers = Window(), Means(), Stragglers(context)
        self._meters = Meters(context, train)

    def run_from(self, start: int) -> bool:
        """Trains on from a step; returns False where it is to go back. Collective: every rank must call."""
        context, train = self._context, self._train
        if start == 0 and self._divergence.left_out:
            self._divergence.refuse_the_beginning()
        self._divergence.resume(start)
        self._damage = Damage(context, limit=train.max_bad_fraction, step=start)
        context.journal.append("begun", step=start)
        self._restart()
        self._since_save.take()
        batches = self._stream.batches(self._task.collate, start_step=start, steps=train.steps - start)
        context.progress.enter("data")
        for step in range(start + 1, train.steps + 1):
            seen = self._leave_out(step, batches) if step in self._divergence.left_out else self._step(step, batches)
            if seen is None:
                return False
            if step == start + 1 and seen.losses:
                self._checkpoints.refuse_unknown_metric({**seen.losses, **self._engine.scalars()})
            self._save(step, stopping=seen.stop and step < train.steps)
        return True

    def _step(self, step: int, batches: Iterator[Batch]) -> "_Seen | None":
        """Learns from the batches of a step; returns None where it is to go back. Collective: every rank must call."""
        context, engine, divergence = self._context, self._engine, self._divergence
        seed_step(context.seed, step, self._train.reader(context.world.rank))
        divergence.begin()
        self._guard.begin(step)
        losses = _learn(self._task, engine, batches, self._window, self._meters, self._guard, context)
        context.progress.enter("agreeing")
        seen = _agree(losses, self._stream.take_losses(), self._checkpoints.saver, context)
        self._damage.take(step, seen.lost, drawn=self._stream.drawn_before(step))
        loss = seen.losses["loss"]
        divergence.look(step, loss, seen.broken)
        context.progress.enter("backward")
        self._window.save_wait_s = self._checkpoints.saver.before_update()
        norm = engine.step(partial(divergence.accepts, step))
        self._guard.end()
        verdict = divergence.settle(step, loss, norm, partial(self._names, step, seen.broken))
        if verdict == "fine":
            self._window.add(seen.losses, self._train.global_batch)
            self._since_save.add(seen.losses)
            self._tell(step, seen, norm)
        return None if verdict == "go back" else seen

    def _leave_out(self, step: int, batches: Iterator[Batch]) -> "_Seen":
        """Passes over the batches of a step that is known to do harm. Collective: every rank must call."""
        self._context.progress.enter("data")
        for _ in range(self._engine.accumulation):
            next(batches)
        self._engine.pass_over()
        seen = _agree({}, self._stream.take_losses(), self._checkpoints.saver, self._context)
        self._damage.take(step, seen.lost, drawn=self._stream.drawn_before(step))
        return seen

    def _names(self, step: int, broken: Sequence[int]) -> Sequence[str]:
        """Names this rank's samples of a step; none where only others have losses that are not finite."""
        return [] if broken and self._context.world.rank not in broken else self._stream.names_of(step)

    def _save(self, step: int, *, stopping: bool) -> None:
        """Saves if it is time to; raises Preempted if it is time to go. Collective: every rank must call."""
        due = self._checkpoints.saves_at(step)
        if not stopping and not due:
            return
        measured = {**self._since_save.take(), **self._scalars()}
        wait = stopping or step == self._train.steps
        saved = _saved(self._engine, step, self._checkpoints, self._context, measured, wait=wait)
        self._restart()
        if stopping or (step == self._train.steps and not saved):
            kept = "everything is saved" if saved else "there was no time to save it"
            raise Preempted(f"stopped after step {step} of {self._train.steps}; {kept}")

    def _scalars(self) -> dict[str, float]:
        """Returns what the engine measured; a norm that overflowed in fp16 is no measure."""
        return {name: value for name, value in self._engine.scalars().items() if math.isfinite(value)}

    def _tell(self, step: int, seen: "_Seen", norm: float) -> None:
        """Tells journal and progress about a step. Collective: every rank must call."""
        context, train, window, lost = self._context, self._train, self._window, self._damage.lost
        # every step, in full precision: two curves can be compared bit for bit
        waits = {"data_wait_s": window.step_wait_s()}
        waits |= {"save_wait_s": window.save_wait_s} if window.save_wait_s > 0 else {}
        finite = norm if math.isfinite(norm) else None
        context.journal.append("loss", step=step, value=seen.losses["loss"], norm=finite, **waits)
        shown = {"samples_per_s": window.samples_per_s(), "data_wait_share": window.wait_share()}
        bad = {"bad_samples": float(lost)} if lost else {}
        context.progress.advance(step, train.steps, "step", loss=seen.losses["loss"], **bad, **shown)
        if step % train.log_every and step != train.steps:
            return
        seconds = window.seconds()
        step_s = seconds / window.steps
        told = context.world.gather((self._stragglers.pace(window.wait_s()), self._meters.read()))
        self._stragglers.look(step, [pace for pace, _ in told], step_s=step_s)
        wait_s = max(pace.wait_s for pace, _ in told)  # of all ranks the longest: the others wait
        waits = {"data_wait_s": wait_s, "data_wait_share": wait_s / step_s}
        shown = {"samples_per_s": train.global_batch / step_s, **waits}
        shown |= metrics_of(
            [reading for _, reading in told], seconds=seconds,
            tensor_parallel=train.engine.tensor_parallel, peak_tflops=context.peak_tflops,
        )  # fmt: skip
        counted = {"bad_samples": float(lost), "bad_fraction": lost / self._stream.drawn_before(step)}
        if self._divergence.left_out:
            counted["left_out_steps"] = float(len(self._divergence.left_out))
        values = {**window.means(), **self._scalars(), **counted, **shown}
        context.journal.metrics(step, values)
        if context.world.is_main:
            words = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            log.info("step %d of %d: %s", step, train.steps, words)
        self._restart()

    def _restart(self) -> None:
        """Begins to measure anew."""
        self._window.restart()
        self._meters.restart()


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
    broken: Sequence[int]  # ranks whose loss is not finite


def _learn(
    task: TrainTask[Batch], engine: Engine, batches: Iterator[Batch], window: Window, meters: Meters, guard: Guard,
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
        with meters.computing(task.tokens_of(batch)):
            losses = task.loss(engine.module, batch)
            context.progress.enter("backward")
            engine.backward(guard.backward(losses.total))
        for name, value in {"loss": losses.total.detach(), **_prefixed(losses.terms)}.items():
            sums[name] = sums[name] + value.double() if name in sums else value.double()
    guard.agree()
    return {name: value.item() / engine.accumulation for name, value in sums.items()}


def _agree(losses: Mapping[str, float], lost: Sequence[Loss], saver: Saver, context: StageContext) -> _Seen:
    """Averages the losses, agrees whether to stop, tells what was lost and lets a save under way go on.

    One collective, one more for a step that lost samples or whose loss is not finite, and one where a save ends.
    Collective: every rank must call.
    """
    finite = math.isfinite(losses.get("loss", 0.0))
    flags = {"?broken": float(not finite), "?stop": float(context.stop()), "?lost": len(lost)}
    signs = saver.signs()
    means = context.world.mean({**losses, **flags, **signs})
    anyone_broken, stop, anything = means.pop("?broken"), means.pop("?stop"), means.pop("?lost")
    saver.follow({name: means.pop(name) for name in signs})
    if anything > 0:
        lost = [loss for of_rank in context.world.gather(list(lost)) for loss in of_rank]
    broken = [rank for rank, bad in enumerate(context.world.gather(not finite)) if bad] if anyone_broken > 0 else []
    return _Seen(losses=means, lost=lost, stop=stop > 0, broken=broken)


def _prefixed(terms: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"loss/{name}": value for name, value in terms.items()}
