"""The command line of orch, as a benchmark uses it: in a folder of its own, on a dev cluster."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slurm.devcluster import DevCluster

REPOSITORY = Path(__file__).parents[1]


@contextmanager
def dev_cluster(name: str, *, nodes: int) -> Iterator[tuple[DevCluster, Path]]:
    """Lends a real Slurm of so many hosts and a folder; afterwards both are gone."""
    with tempfile.TemporaryDirectory(prefix=f"orch-{name}-", ignore_cleanup_errors=True) as folder:
        cluster = DevCluster.up(Path(folder) / "cluster", name=f"{name}{os.getpid()}", nodes=nodes)
        try:
            yield cluster, Path(folder)
        finally:
            cluster.down()


class Orch:
    """`orch` in a folder."""

    def __init__(self, folder: Path, cluster: DevCluster) -> None:
        """Uses `folder` for recipes and runs."""
        self.folder = folder
        self.environment = {**os.environ, **cluster.environment(), "PYTHONPATH": str(REPOSITORY)}

    def __call__(self, *arguments: str, timeout_s: float = 300) -> str:
        """Runs a command, which must end well, and returns what it printed."""
        return self.python("-m", "orchestrator.cli", *arguments, timeout_s=timeout_s)

    def timed(self, *arguments: str, timeout_s: float = 300) -> float:
        """Runs a command and returns how many seconds it took."""
        began = time.perf_counter()
        self(*arguments, timeout_s=timeout_s)
        return time.perf_counter() - began

    def python(self, *arguments: str, timeout_s: float = 300) -> str:
        """Runs Python as the command line would."""
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=self.environment, text=True, capture_output=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            words = " ".join(arguments[:6])
            raise subprocess.SubprocessError(f"python {words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout
