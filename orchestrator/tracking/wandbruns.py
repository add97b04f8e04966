"""Tells Weights & Biases what journals say, one run a stage; the only module that imports wandb.

How to reach it, wandb knows by itself (`wandb login`, WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_BASE_URL ...).
Without a login it writes files below `RUN/STAGE/wandb/`, which `wandb sync` sends later.

A row of its history is a line of the journal, numbered from the first. A journal only grows, so whoever begins anew
goes through it from the start: online, W&B says how many rows it has, and those are passed over; offline, what an
earlier process wrote is replaced. Either way each row is there once.
"""

import json
import os
import shutil
import uuid
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import wandb

from orchestrator.artifacts import write_json
from orchestrator.journal import JOURNAL
from orchestrator.tracking.journals import read_batch
from orchestrator.tracking.story import Story

FOLDER = "wandb"  # wandb's own name for it
TOLD = "told.json"
OFFLINE = "offline-run-*"
STEP = "step"
INIT_S = 60.0


class WandbRuns:
    """The runs of W&B that stand for the stages of a run."""

    def __init__(self, group: str, project: str) -> None:
        """Opens none yet. They are one group; `project` is where they lie unless WANDB_PROJECT says another."""
        self._group = group
        self._project = os.environ.get("WANDB_PROJECT") or project
        self._open: dict[Path, _Run] = {}

    def tell(self, story: Story) -> None:
        """Tells what is new of a stage; at its end, waits until everything has arrived."""
        folder = story.directory / FOLDER
        told = _read(folder / TOLD)
        size = _size(story.directory / JOURNAL)
        if not size or (
            story.ended_ms is not None and (told.get("ended_ms"), told.get("size")) == (story.ended_ms, size)
        ):
            return
        run = self._open.pop(story.directory, None)  # one that fails is not used again
        if run is None:
            key = told.get("id") or uuid.uuid4().hex[:16]
            folder.mkdir(exist_ok=True)
            write_json(folder / TOLD, {"id": key})  # first: whoever comes after us goes on with the same run
            run = _Run(story, key, self._group, self._project)
        run.tell(story)
        if story.ended_ms is None:
            self._open[story.directory] = run
        else:
            run.finish(story)
            write_json(folder / TOLD, {"id": run.key, "ended_ms": story.ended_ms, "size": size})

    def close(self) -> None:
        """Ends the runs that are open; the next process goes on with them."""
        for run in self._open.values():
            run.leave()


class _Run:
    """One run of W&B."""

    def __init__(self, story: Story, key: str, group: str, project: str) -> None:
        mode = _mode()
        if mode == "offline":
            for path in (story.directory / FOLDER).glob(OFFLINE):
                shutil.rmtree(path)
        self.key = key
        self._offset = 0
        self._last_steps: dict[str, int] = {}
        self._row = 0
        settings = {name: _typed(text) for name, text in story.params.items()}
        self._run = wandb.init(
            project=project, id=key, name=story.name, group=group, job_type=story.stage, config=settings,
            dir=story.directory, mode=mode, resume="allow" if mode == "online" else None, reinit="create_new",
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, save_code=False, disable_code=True, x_disable_meta=True,
                x_disable_stats=True, x_disable_machine_info=True, init_timeout=INIT_S,
            ),
        )  # fmt: skip
        self._run.define_metric("*", step_metric=STEP)

    def tell(self, story: Story) -> None:
        """Hands over what is new in the journal; wandb sends it in the background."""
        while True:
            batch = read_batch(story.directory, self._offset, self._last_steps)
            if batch.end == self._offset:
                return
            for (step, time_ms), some in groupby(batch.points, key=lambda point: (point.step, point.time_ms)):
                if self._row >= self._run.starting_step:  # else W&B has it
                    values = {point.key: point.value for point in some}
                    self._run.log({**values, STEP: step, "_timestamp": time_ms / 1000}, step=self._row, commit=True)
                self._row += 1
            self._offset, self._last_steps = batch.end, dict(batch.last_steps)

    def finish(self, story: Story) -> None:
        """Ends it as its stage has ended, once everything has arrived."""
        self._run.finish(exit_code=0 if story.status == "FINISHED" else 1)

    def leave(self) -> None:
        """Ends it without saying how its stage ended."""
        self._run.finish()


def _typed(text: str) -> Any:
    """Returns a setting as the number, list or word that it is, for W&B to compare and sort by."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _mode() -> Literal["online", "offline"]:
    """Returns what wandb is told to do, else what it can: without a login, nothing but to write files."""
    given = os.environ.get("WANDB_MODE")
    if given:
        return "online" if given == "online" else "offline"
    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def _read(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plain if isinstance(plain, dict) else {}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
