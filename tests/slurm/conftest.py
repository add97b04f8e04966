"""The cluster that the tests of Slurm share: started once, when the first test asks for it."""

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.devcluster import DevCluster, surroundings
from tests.slurm.programs import Programs


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


def _end_orphans() -> None:
    """Takes down the clusters of test runs that were killed: a cluster's name is its maker's process number."""
    for name, folder in DevCluster.everywhere():
        if re.fullmatch(r"t\d+", name) and not Path("/proc", name[1:]).exists():
            DevCluster.remains(folder, name).down()
