"""The cluster that the tests of Slurm share: started once, when the first test asks for it."""

import os
import re
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from slurm.devcluster import DevCluster, surroundings
from tests.slurm.programs import Programs

LAST_LINES = 40


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Gives programs of our own that come before those of the machine."""
    programs = Programs(tmp_path / "bin")
    monkeypatch.setenv("PATH", programs.path())
    return programs


@pytest.fixture(scope="session")
def devcluster() -> Iterator[DevCluster]:
    """Yields a real Slurm of three hosts; skips where there can be none, saying why."""
    if missing := surroundings.lacking():
        pytest.skip("; ".join(missing))
    _end_orphans()
    cluster = DevCluster.up(Path(tempfile.mkdtemp(prefix="orch-")), name=f"t{os.getpid()}")
    try:
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(autouse=True)
def _whole_again(request: pytest.FixtureRequest) -> None:
    """Starts again what an earlier test has left dead: who finds it so has failed, and the others need not."""
    if "devcluster" in request.fixturenames:
        cluster: DevCluster = request.getfixturevalue("devcluster")
        cluster.start_accounting()
        cluster.start_controller()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows what the controller said last beside a test that failed: its log goes with the cluster."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("devcluster")
    if report.failed and isinstance(cluster, DevCluster):
        lines = cluster.layout.path("log", "slurmctld.out").read_text(errors="replace").splitlines()
        report.sections.append(("the end of slurmctld.out", "\n".join(lines[-LAST_LINES:])))
    return report


def _end_orphans() -> None:
    """Takes down the clusters of test runs that were killed: a cluster's name is its maker's process number."""
    for name, folder in DevCluster.everywhere():
        if re.fullmatch(r"t\d+", name) and not Path("/proc", name[1:]).exists():
            DevCluster.remains(folder, name).down()
