"""Kills a process that saves, again and again, and looks at what it leaves."""

import multiprocessing
import os
import random
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.training.config import EngineConfig, OptimConfig, SaveConfig, TrainConfig

if TYPE_CHECKING:
    from orchestrator.training.task import TrainTask

LONGEST_S = 0.6  # until the kill, from when it first saves: a few saves


def killed(folder: Path, kills: int) -> tuple[int, int]:
    """Kills at random instants of saving; returns after how many kills the newest checkpoint loaded, and its step."""
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.checkpoint_kills", "orchestrator.training.loop"])
    chance, loadable, step = random.Random(kills), 0, 1  # noqa: S311 - moments, no secrets
    _, checkpoints, engine = _made(folder)  # the first kill may come before the first save is done
    checkpoints.save(engine, step)
    checkpoints.saver.finish()
    for _ in range(kills):
        process = context.Process(target=_saves_for_ever, args=(folder, chance.uniform(0.0, LONGEST_S)))
        process.start()
        process.join(120)
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"a process that saves was not killed, but ended with {process.exitcode}")
        _, checkpoints, engine = _made(folder)
        found = checkpoints.resume(engine)  # reads every byte, and compares checksums
        torn = [path for path in (folder / "checkpoints").glob("step_*") if not (path / "manifest.json").is_file()]
        loadable += found >= step and not torn
        step = found
    return loadable, step


def _saves_for_ever(folder: Path, after_s: float) -> None:
    _train, checkpoints, engine = _made(folder)
    step = checkpoints.resume(engine)
    threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
    while True:
        step += 1
        checkpoints.saver.make_way(step)
        checkpoints.save(engine, step)
        checkpoints.saver.before_update()


def _made(folder: Path) -> tuple[TrainConfig, Any, Any]:
    from benchmarks.checkpoint_ranks import LEARNS, ReaderTask, Shape
    from orchestrator.training.checkpoints import Checkpoints
    from orchestrator.training.engine import make_engine
    from orchestrator.training.retention import CHECKPOINTS
    from orchestrator.world import World

    train = TrainConfig(
        steps=10**6, global_batch=2, optim=OptimConfig(lr=1e-4), save=SaveConfig(keep_last=2),
        engine=EngineConfig(name="torch", precision="fp32"),
    )  # fmt: skip
    world = World.alone()
    task: TrainTask[Any] = ReaderTask(Shape(width=128, depth=4, words=1024))
    engine = make_engine(task, train, trainable=LEARNS, world=world, seed=1)
    checkpoints = Checkpoints(folder / CHECKPOINTS, fingerprint="f" * 12, train=train, seed=1, world=world)
    return train, checkpoints, engine
