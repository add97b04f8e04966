"""The toy's training as a stage that can be launched, and accidents that befall one of its ranks, each once.

A catalog of its own, for `ORCH_CATALOG=tests.toytraining`.
"""

import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.artifacts import Checkpoint
from orchestrator.records import incidental, record
from orchestrator.stage import Stage, StageContext

if TYPE_CHECKING:
    from orchestrator.data.stream import Drawn
    from orchestrator.training.task import Losses, TrainTask

STAGES = {"train": "tests.toytraining:Train"}
FAMILIES: Mapping[str, str] = {}


class Train(Stage):
    """Trains the toy of `tests/toys.py`."""

    @record
    class Config:
        steps: int = 12
        save_every: int = 2
        log_every: int = 10
        accidents: dict[str, str] = field(default_factory=dict)  # "step.rank" -> what happens there, once
        slow: dict[str, float] = incidental(default_factory=dict)  # rank -> seconds that each of its batches takes

    @record
    class Outputs:
        model: Checkpoint

    joins: ClassVar[bool] = True

    def steps(self) -> int | None:
        return int(self.config.steps)

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        import torch

        from orchestrator.training.checkpoints import Checkpoints
        from orchestrator.training.config import SaveConfig
        from orchestrator.training.engine import make_engine
        from orchestrator.training.loop import fit
        from orchestrator.training.retention import CHECKPOINTS
        from tests.toys import ToyStream, toy_train

        torch.set_num_threads(1)
        save = SaveConfig(every_steps=self.config.save_every, in_background=False)  # accidents find it on the disk
        train = toy_train(self.config.steps, save=save, log_every=self.config.log_every)
        checkpoints = Checkpoints(
            context.directory / CHECKPOINTS, fingerprint=context.fingerprint, train=train, seed=context.seed,
            world=context.world, journal=context.journal,
        )  # fmt: skip
        task = unlucky_task(context, self.config)
        engine = make_engine(task, train, trainable=("*",), world=context.world, seed=context.seed)
        stream = ToyStream(train, context.world)
        step = fit(task, engine, stream, train=train, checkpoints=checkpoints, context=context)
        return {"model": checkpoints.promote(self.outputs.model, step, task.describe(), task.extras())}


def unlucky_task(context: StageContext, config: Any) -> "TrainTask[Any]":
    """Makes the toy's task with the accidents of a config."""
    from tests.toys import ToyTask

    class UnluckyTask(ToyTask):
        def collate(self, drawn: "Sequence[Drawn]") -> Any:
            time.sleep(config.slow.get(str(context.world.rank), 0.0))
            _meet(config.accidents, drawn[0].seed + 1, context)
            return super().collate(drawn)

        def loss(self, model: Any, batch: Any) -> "Losses":
            losses = super().loss(model, batch)
            if "nan" in config.accidents.values() and context.world.rank == 1:
                losses.total.data.fill_(math.nan)
            return losses

    return UnluckyTask()


def _meet(accidents: Mapping[str, str], step: int, context: StageContext) -> None:
    what = accidents.get(f"{step}.{context.world.rank}")
    met = Path(context.directory / f"met_{step}.{context.world.rank}")
    if what is None or met.exists():
        return
    met.touch()
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "sleep":
        fall_asleep()
    elif what == "memory":
        raise MemoryError("the toy is too large")


def fall_asleep() -> None:
    """Is the line that a report of the hang should name."""
    time.sleep(1000)
