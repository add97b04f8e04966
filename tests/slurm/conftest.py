"""The cluster that the tests of Slurm share: started once, when the first test asks for it."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.devcluster import DevCluster, surroundings


@pytest.fixture(scope="session")
def devcluster() -> Iterator[DevCluster]:
    """Yields a real Slurm of three hosts; skips where there can be none, saying why."""
    if missing := surroundings.lacking():
        pytest.skip("; ".join(missing))
    # in a short folder: sockets lie in it
    with tempfile.TemporaryDirectory(prefix="orch-", ignore_cleanup_errors=True) as folder:
        cluster = DevCluster.up(Path(folder) / "c", name=f"t{os.getpid()}")
        try:
            yield cluster
        finally:
            cluster.down()
