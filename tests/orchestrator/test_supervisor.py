"""The process that works through a run, beside what `test_local.py` sees of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

START = """
import os, sys
from pathlib import Path
from orchestrator.supervisor import Forwarder
forwarder = Forwarder(Path(sys.argv[1]))
print(os.getpriority(os.PRIO_PROCESS, forwarder._process.pid))
forwarder.drain(60)
"""


@pytest.mark.parametrize("given", [0, 15])
def test_who_tells_mlflow_stands_back_behind_a_run_that_stands_back_itself(given: int, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    own = min(19, os.getpriority(os.PRIO_PROCESS, 0) + given)

    said = subprocess.run(
        ["nice", "-n", str(given), sys.executable, "-c", START, str(tmp_path)], capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip

    assert int(said.stdout) == min(19, own + 10)
