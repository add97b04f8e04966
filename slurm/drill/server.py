"""A real MLflow server that can be killed and started again."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from orchestrator.errors import SurroundingsError
from slurm.devcluster import DevCluster

_START_S = 60.0


class TrackingServer:
    """A real MLflow server on this machine, which the hosts reach over the cluster's bridge."""

    def __init__(self, cluster: DevCluster, folder: Path) -> None:
        """Starts the server; its database lies in `folder`."""
        self.folder, self.database = folder, folder / "mlflow.db"
        self._port = _free_port()
        self.uri = f"http://{cluster.layout.login}:{self._port}"
        folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts it, again if it was killed; returns when it answers."""
        store = ["--backend-store-uri", f"sqlite:///{self.database}", "--artifacts-destination", str(self.folder)]
        words = ["--host", "0.0.0.0", "--port", str(self._port), "--workers", "1", "--allowed-hosts", "*"]  # noqa: S104 - hosts of the drill must reach it
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *store, *words], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True, cwd=self.folder,
            )  # fmt: skip
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SurroundingsError(f"the MLflow server did not start: see {self.folder / 'server.log'}")
            time.sleep(0.2)

    def kill(self) -> None:
        """Kills the server and its workers."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:  # noqa: S310 - our own server
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
