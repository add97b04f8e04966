"""A finished run, evaluated once for all tests of the report, and copies of it to be spoiled."""

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.state import Attempt
from tests.orchestrator.report.runs import STARTED, copy_run, write_run

FIRST = Attempt(
    number=1, launcher="local", job_id="7", nodes=("workstation",), started=STARTED + 100, ended=STARTED + 183,
    state="failed", from_step=0, to_step=170, saved_step=150, cause="node_failure", detail="rank 1 was killed",
    decision="again: node_failure",
)  # fmt: skip
SECOND = Attempt(
    number=2, launcher="local", job_id="7", nodes=("workstation",), started=STARTED + 200, ended=STARTED + 283,
    state="done", from_step=150, to_step=300,
)  # fmt: skip


@pytest.fixture(scope="session")
def evaluated_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a finished run, of which one stage needed two attempts; to be read only."""
    return write_run(tmp_path_factory.mktemp("evaluated") / "bars", {}, attempts={"region": (FIRST, SECOND)})


@pytest.fixture
def copied(evaluated_run: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Returns what makes a copy of that run, under a name."""
    return lambda name: copy_run(evaluated_run, tmp_path / name)
