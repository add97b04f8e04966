"""Whoever is told beside MLflow (`tracking.also`): each by a process of its own, so that none keeps another waiting."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from orchestrator.errors import InputError, SurroundingsError
from orchestrator.lifeline import die_with
from orchestrator.redaction import hide
from orchestrator.state import Launch, read_launch
from orchestrator.tracking.pace import LOOK_EVERY_S, keep_telling
from orchestrator.tracking.story import Story, stage_stories

PATIENCE_S = 20.0  # how long one keeps trying after its run has ended
GRACE_S = 5.0  # to leave, once asked to

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Somebody who hears what journals say."""

    def tell(self, story: Story) -> None:
        """Tells what is new of a stage; raises where that must be tried again. What was told is not told twice."""

    def close(self) -> None:
        """Ends well; what is not told yet, the next one tells."""


def tracker_of(name: str, run_dir: Path, launch: Launch) -> Tracker:
    """Makes the tracker of that name."""
    if name == "tensorboard":
        from orchestrator.tracking.eventfiles import EventFiles

        return EventFiles()
    if name == "wandb":
        from orchestrator.tracking.wandbruns import WandbRuns

        return WandbRuns(run_dir.resolve().name, str(launch.tracking.get("experiment") or launch.recipe))
    raise InputError(f"tracking.also: nobody is called {name!r}")


def tell_beside(run_dir: Path, name: str, *, parent: int, follow: bool, stop: threading.Event) -> bool:
    """Tells one of them of a run, once or until the run has ended; returns whether it was told everything.

    Dies with the forwarder `parent`, which holds the right to speak about the run.
    """
    die_with(parent)
    launch = read_launch(run_dir)
    if launch is None:
        return False
    tracker, complaints = tracker_of(name, run_dir, launch), dict[str, str]()
    tells = partial(_told, tracker, name, run_dir, complaints)
    try:
        if follow:
            keep_telling(tells, lambda: _is_over(run_dir, stop), stop)
        deadline = time.monotonic() + (PATIENCE_S if follow else LOOK_EVERY_S)  # else somebody waits, and asks again
        while not (told := tells()) and time.monotonic() < deadline and not stop.is_set():
            time.sleep(LOOK_EVERY_S)
        return told
    finally:
        tracker.close()


@contextmanager
def beside(run_dir: Path, launch: Launch, *, follow: bool, lock: int) -> Iterator[Sequence["Beside"]]:
    """Has everybody told whom a launch names, for as long as the block lasts."""
    others: list[Beside] = []
    try:
        others.extend(Beside(run_dir, name, follow=follow, lock=lock) for name in launch.tracking.get("also") or ())
        yield others
    finally:
        for other in others:
            other.end()


class Beside:
    """The process that tells one of them, for as long as its forwarder lasts."""

    def __init__(self, run_dir: Path, name: str, *, follow: bool, lock: int) -> None:
        """Starts it. It holds the forwarder's lock, too: nobody else speaks about the run before it has gone."""
        self.name = name
        command = [sys.executable, "-P", "-m", "orchestrator.tracking", str(run_dir), "--to", name]
        command += ["--parent", str(os.getpid()), *(["--follow"] if follow else [])]
        with (run_dir / "logs" / "tracking.log").open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(lock,)
            )

    def wait(self, patience_s: float | None) -> bool:
        """Waits until everything is told; False if it was not, or the patience ended."""
        try:
            return self._process.wait(patience_s) == 0
        except subprocess.TimeoutExpired:
            return False

    def ask(self) -> None:
        """Asks it to tell what is there, and to leave."""
        self._process.terminate()

    def end(self) -> None:
        """Ends it: asked first, then killed."""
        self._process.terminate()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _told(tracker: Tracker, name: str, run_dir: Path, complaints: dict[str, str]) -> bool:
    """Tells what is new of every stage; says of each why it could not, unless that was the last complaint of it."""
    launch = read_launch(run_dir)
    if launch is None:
        raise SurroundingsError(f"{run_dir} was never launched, or is gone")
    failures = {}
    for story in stage_stories(run_dir, launch):
        try:
            tracker.tell(story)
        except Exception as error:  # whatever a library raises: the other stages are told, and this one is tried again
            log.debug("%s was not told of %s", name, story.name, exc_info=True)
            failures[story.name] = f"{type(error).__name__}: {hide(str(error))[:400]}"
    for stage, words in failures.items():
        if complaints.get(stage) != words:
            log.warning("%s was not told everything of %s yet: %s", name, stage, words)
    complaints.clear()
    complaints.update(failures)
    return not failures


def _is_over(run_dir: Path, stop: threading.Event) -> bool:
    launch = read_launch(run_dir)
    return stop.is_set() or launch is None or launch.ended is not None
