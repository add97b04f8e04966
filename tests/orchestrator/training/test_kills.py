"""Whatever the moment at which a process is killed: every checkpoint that has its name is whole and loads."""

import os
import random
import signal
import threading
from pathlib import Path

import pytest
from torch import Tensor, nn

from orchestrator.training.config import SaveConfig
from orchestrator.training.engine import make_engine
from orchestrator.training.retention import CHECKPOINTS
from orchestrator.training.task import Losses
from orchestrator.world import World
from tests.ranks import RankFailed, run_ranks
from tests.toys import ToyTask, toy_checkpoints, toy_fit, toy_train

pytestmark = pytest.mark.slow

TRAIN = toy_train(100_000, save=SaveConfig(every_steps=1, keep_last=2, keep_every=50))
LEARNS = ("blocks", "head")
LONGEST_S = 0.25  # some twenty saves of the toy


# of the rank that is killed, or of its peer that waited for it: whichever is heard first
KILLED = r"died without a word|Connection (closed|reset) by peer"


class MortalTask(ToyTask):
    """Kills its process so many seconds after it first saves, or after it has first published what it saved."""

    def __init__(self, directory: Path, after_s: float, *, published: bool) -> None:
        super().__init__()
        self.directory, self.after_s, self.published = directory, after_s, published
        self.before = self.names()
        self.losses = 0

    def loss(self, model: nn.Module, batch: Tensor) -> Losses:
        self.losses += 1
        if self.losses > 1 and not (self.published and self.names() == self.before):
            threading.Timer(self.after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return super().loss(model, batch)

    def names(self) -> set[str]:
        return {path.name for path in self.directory.glob(f"{CHECKPOINTS}/step_*")}


def _saves_until_killed(world: World, directory: Path, victim: int, after_s: float, published: bool) -> None:  # noqa: FBT001 - a process takes them by place
    task = MortalTask(directory, after_s, published=published) if world.rank == victim else ToyTask()
    toy_fit(world, directory, TRAIN, task=task, trainable=LEARNS, first_weights=world.size)


def _kill(instants: int, directory: Path, meetings: Path, caplog: pytest.LogCaptureFixture) -> list[int]:
    caplog.set_level("WARNING")
    chance, steps = random.Random(instants), [0]
    engine = make_engine(ToyTask(), TRAIN, trainable=LEARNS, world=World.alone(), seed=1)
    for instant in range(instants):
        after_s, victim = chance.uniform(0.0, LONGEST_S), chance.randrange(2)
        with pytest.raises(RankFailed, match=KILLED):
            run_ranks(2, _saves_until_killed, directory, victim, after_s, instant % 2 == 0, directory=meetings)
        steps.append(toy_checkpoints(World.alone(), directory, TRAIN).resume(engine))  # reads and verifies all of it
    assert "passing over" not in caplog.text  # what has its name was never torn
    return steps


def test_twenty_kills_at_random_leave_twenty_checkpoints_that_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = _kill(20, tmp_path / "run", tmp_path, caplog)

    assert steps == sorted(steps)
    assert steps[-1] >= 10


@pytest.mark.long
def test_two_hundred_kills_at_random_leave_two_hundred_checkpoints_that_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = _kill(200, tmp_path / "run", tmp_path, caplog)

    assert steps == sorted(steps)
    assert steps[-1] >= 100
