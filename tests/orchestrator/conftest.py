"""Fixtures of the tests of the orchestrator."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import Orch


@pytest.fixture
def orch(tmp_path: Path) -> Iterator[Orch]:
    """Gives a command line; whatever it left running ends with the test."""
    command_line = Orch(tmp_path)
    yield command_line
    path = command_line.run_folder / "launch.json"
    if path.is_file():
        launch = json.loads(path.read_text(encoding="utf-8"))
        if launch["pid"] and launch["ended"] is None:
            try:
                os.kill(launch["pid"], signal.SIGKILL)
            except ProcessLookupError:
                return
