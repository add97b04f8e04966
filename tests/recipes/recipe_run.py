"""A recipe of this repository, run by the command line in a folder of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.waiting import until

REPOSITORY = Path(__file__).parents[2]


class RecipeRun:
    """`orch` with the real stages, runs and MLflow store inside `folder`."""

    def __init__(self, folder: Path, recipe: str, *overrides: str) -> None:
        self.folder, self.recipe, self.overrides = folder, REPOSITORY / "recipes" / recipe, overrides

    def orch(self, *arguments: str, code: int = 0, timeout_s: float = 2400) -> str:
        """Runs a command to its end, which must be `code`, without a traceback; returns what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *arguments], cwd=self.folder, text=True, capture_output=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, timeout=timeout_s, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout

    def launch(self, name: str, *more: str, code: int = 0) -> str:
        """Launches the recipe as run `name`."""
        return self.orch("launch", str(self.recipe), *self.overrides, "--name", name, *more, code=code)

    def plan(self, name: str, *overrides: str) -> dict[str, dict[str, Any]]:
        """Plans it and returns the stages by name."""
        arguments = ("plan", str(self.recipe), *self.overrides, *overrides, f"name={name}", "--json")
        return {stage["name"]: stage for stage in json.loads(self.orch(*arguments))["stages"]}

    def status(self, name: str) -> dict[str, dict[str, Any]]:
        """Returns the stages of a run by name."""
        return {stage["name"]: stage for stage in json.loads(self.orch("status", name, "--json"))["stages"]}

    def losses(self, name: str, stage: str) -> dict[int, float]:
        """Returns the loss of every step; where a step was done twice, the later one."""
        lines = (self.folder / "runs" / name / stage / "journal.jsonl").read_text(encoding="utf-8").splitlines()
        events = [json.loads(line) for line in lines]
        return {event["step"]: event["value"] for event in events if event["event"] == "loss"}

    def wait(self, question: Callable[[], bool], seconds: float) -> None:
        """Asks until the answer is yes."""
        until(question, seconds)


def workers(run_folder: Path, stage: str) -> list[int]:
    """Returns the processes that work on a stage of a run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it ended while we looked
                continue
            if b"orchestrator.worker" in words and str(run_folder).encode() in words and stage.encode() in words:
                found.append(int(entry.name))
    return found
