"""The command line of orch as a test uses it: real processes, a run folder of its own, toy stages."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.waiting import until

REPOSITORY = Path(__file__).parents[1]


class Orch:
    """`orch` in a folder of its own."""

    def __init__(
        self, folder: Path, *, catalog: str = "tests.toychain", environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.run_folder = folder / "runs" / "toy"
        self._environment = {
            **os.environ, "PYTHONPATH": str(REPOSITORY), "ORCH_CATALOG": catalog, "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }  # fmt: skip

    def recipe(self, stages: Mapping[str, Any], **more: Any) -> Path:
        """Writes a recipe that nobody tracks."""
        path = self.folder / "recipe.yaml"
        document = {"name": "toy", "tracking": {"uri": None}, "stages": dict(stages), **more}
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        return path

    def start(self, *arguments: Any) -> "subprocess.Popen[str]":
        """Starts a command."""
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)],
            cwd=self.folder, env=self._environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip

    def __call__(self, *arguments: Any, code: int = 0) -> "subprocess.CompletedProcess[str]":
        """Runs a command to its end, which must be `code`, without a traceback."""
        process = self.start(*arguments)
        try:
            output, errors = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == code, f"exit {process.returncode}\n{output}\n{errors}"
        assert "Traceback" not in errors
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def python(
        self, *arguments: str, catalog: str = "tests.toychain", path: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Runs Python as the command line would."""
        places = [str(REPOSITORY), *([str(path)] if path else [])]
        environment = {**self._environment, "ORCH_CATALOG": catalog, "PYTHONPATH": os.pathsep.join(places)}
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=environment, text=True, capture_output=True, timeout=180,
            check=False,
        )  # fmt: skip

    def json(self, *arguments: Any, code: int = 0) -> Any:
        """Runs a command and reads its JSON."""
        return json.loads(self(*arguments, "--json", code=code).stdout)

    def status(self) -> dict[str, Any]:
        """Returns the status of the toy run."""
        shown: dict[str, Any] = self.json("status", "toy")
        return shown

    def stage(self, name: str) -> dict[str, Any]:
        """Returns the status of one stage."""
        return next(stage for stage in self.status()["stages"] if stage["name"] == name)

    def wait(self, question: Callable[[], Any], seconds: float = 30.0) -> Any:
        """Asks until the answer is yes."""
        return until(question, seconds, what=self._written)

    def _written(self) -> list[str]:
        return [path.read_text(encoding="utf-8") for path in self.run_folder.glob("*/state.json")]

    def pid(self, stage: str) -> int:
        """Waits until a stage runs and returns its process."""
        path = self.run_folder / stage / "pid"
        return int(self.wait(lambda: path.is_file() and path.read_text(encoding="ascii")))

    def over(self) -> bool:
        """Tells whether the latest launch has ended."""
        return bool(self.status()["ended"])

    def supervisor(self) -> int:
        """Returns the supervisor's process."""
        path = self.run_folder / "launch.json"
        return int(self.wait(lambda: path.is_file() and json.loads(path.read_text(encoding="utf-8"))["pid"]))


def alive(pid: int) -> bool:
    """Tells whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
