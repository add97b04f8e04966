"""A real `mlflow server` that can be killed and started again at the same address."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import SurroundingsError

PATIENCE_S, LOOK_EVERY_S = 120.0, 0.05  # a server takes many seconds to come up on a busy machine
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"  # noqa: S104 - hosts of a drill must reach it


class TrackingServer:
    """`mlflow server` on a port of its own, with a database that outlives it."""

    def __init__(
        self, folder: Path, store: str | None = None, *, address: str = LOOPBACK, app: str | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Names the address; nothing runs yet.

        `store` is the database, by default `mlflow.db` in `folder`; `address` one of this machine's, where others than
        this machine reach it too unless it is the loopback. `app` is MLflow's `--app-name`, `more` goes to its
        environment.
        """
        self._host = LOOPBACK if address == LOOPBACK else EVERYWHERE
        with socket.socket() as chosen:
            chosen.bind((self._host, 0))
            self.port = int(chosen.getsockname()[1])
        self.uri = f"http://{address}:{self.port}"
        self.database = folder / "mlflow.db"
        self._folder = folder
        self._store = store or f"sqlite:///{self.database}"
        self._app = {} if app is None else {"--app-name": app}
        self._more = more or {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, patience_s: float = PATIENCE_S) -> None:
        """Starts it and waits until it answers; with no patience, does not wait.

        Raises:
            SurroundingsError: It ended, or does not answer.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        options = {
            "--host": self._host,
            "--port": str(self.port),
            "--workers": "1",
            "--backend-store-uri": self._store,
            "--artifacts-destination": f"{self._folder}/files",
            **({} if self._host == LOOPBACK else {"--allowed-hosts": "*"}),
            **self._app,
        }
        command = [sys.executable, "-m", "mlflow", "server", *itertools.chain.from_iterable(options.items())]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self._folder,
                env={**os.environ, **quiet, **self._more},
            )  # fmt: skip
        deadline = time.monotonic() + patience_s
        while patience_s and not self.answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                said = (self._folder / "server.log").read_text(encoding="utf-8", errors="replace")[-2000:]
                raise SurroundingsError(f"mlflow server does not answer at {self.uri}: {said}")
            time.sleep(LOOK_EVERY_S)

    def answers(self) -> bool:
        """Tells whether it is up."""
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:  # noqa: S310 - our own server
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """Kills it and its workers where they are, with kill -9."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            deadline = time.monotonic() + PATIENCE_S
            while self._is_heard() and time.monotonic() < deadline:  # a worker dies a moment after its parent
                time.sleep(LOOK_EVERY_S)

    def _is_heard(self) -> bool:
        with socket.socket() as visitor:
            return visitor.connect_ex((LOOPBACK, self.port)) == 0
