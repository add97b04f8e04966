"""Whatever the moment at which a process is killed: every checkpoint that has its name is whole and loads."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from orchestrator.training.config import SaveConfig
from orchestrator.training.engine import make_engine
from orchestrator.training.retention import CHECKPOINTS
from orchestrator.world import World
from tests.ranks import RankFailed, run_ranks
from tests.toys import ToyTask, toy_checkpoints, toy_fit, toy_train

pytestmark = pytest.mark.slow

TRAIN = toy_train(100_000, save=SaveConfig(every_steps=1, keep_last=2, keep_every=50))
LEARNS = ("blocks", "head")
LONGEST_S = 0.25  # some twenty saves of the toy


def _saves_until_killed(world: World, directory: Path, victim: int, after_s: float) -> None:
    if world.rank == victim:
        threading.Thread(target=_die, args=(directory, after_s), daemon=True).start()
    toy_fit(world, directory, TRAIN, trainable=LEARNS, first_weights=world.size)


def _die(directory: Path, after_s: float) -> None:
    while not any(directory.glob(f"{CHECKPOINTS}/.step_*.draft")):  # it saves
        time.sleep(0.001)
    time.sleep(after_s)
    os.kill(os.getpid(), signal.SIGKILL)


def _kill(instants: int, directory: Path, meetings: Path, caplog: pytest.LogCaptureFixture) -> list[int]:
    chance, steps = random.Random(instants), [0]
    engine = make_engine(ToyTask(), TRAIN, trainable=LEARNS, world=World.alone(), seed=1)
    for _ in range(instants):
        after_s, victim = chance.uniform(0.0, LONGEST_S), chance.randrange(2)
        with pytest.raises(RankFailed, match="died without a word"):
            run_ranks(2, _saves_until_killed, directory, victim, after_s, directory=meetings)
        steps.append(toy_checkpoints(World.alone(), directory, TRAIN).resume(engine))  # reads and verifies all of it
    assert "passing over" not in caplog.text
    return steps


def test_twenty_kills_at_random_leave_twenty_checkpoints_that_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = _kill(20, tmp_path / "run", tmp_path, caplog)

    assert steps == sorted(steps)
    assert steps[-1] > 20


@pytest.mark.long
def test_two_hundred_kills_at_random_leave_two_hundred_checkpoints_that_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = _kill(200, tmp_path / "run", tmp_path, caplog)

    assert steps == sorted(steps)
    assert steps[-1] > 200
