"""One run of the rehearsed recipe on the cluster: launching it by the command line, waiting, finding its processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orchestrator
from orchestrator.errors import SurroundingsError
from slurm.devcluster import DevCluster
from slurm.drill.recipe import CHECK, TRAIN, Shape, training_stages, write_recipe
from slurm.drill.server import TrackingServer
from slurm.drill.trace import Trace, read_trace

T = TypeVar("T")

COMMAND_S, WAIT_S, RUN_S = 300.0, 180.0, 600.0  # of a busy machine
_LOOK_S, _ASK_EVERY_S = 0.1, 5.0
_OVER = frozenset({"done", "failed", "cancelled"})


class DrillFailed(Exception):
    """What was rehearsed did not come about: a wait was in vain, or a command ended otherwise than it had to."""


class Field:
    """A run under rehearsal."""

    def __init__(
        self, cluster: DevCluster, folder: Path, name: str, shape: Shape, *, runs: Path,
        server: TrackingServer | None = None,
    ) -> None:  # fmt: skip
        """Writes the recipe; nothing is launched yet. `runs` is the folder of the run folders."""
        self.cluster, self.folder, self.name, self.shape, self.server = cluster, folder, name, shape, server
        self.run = runs / name
        self._training = training_stages(shape)
        self.began = 0.0  # when it was launched
        self.harmed = 0.0  # when the harm was done
        self.notes: list[str] = []  # what went differently from what was rehearsed
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe = write_recipe(folder / f"{name}.yaml", shape, tracking=server.uri if server else None)
        self._words = [str(self.recipe), f"name={name}", f"runs={runs}", "--on", str(cluster.cluster_file())]

    def launch(self) -> None:
        """Launches the run and leaves it to the cluster."""
        self.began = time.time()
        self.orch("launch", *self._words, "--detach")

    def start_launching(self) -> "subprocess.Popen[bytes]":
        """Starts the command that launches the run, for somebody who wants to kill it."""
        self.began = self.began or time.time()
        with (self.folder / f"{self.name}.launcher.log").open("ab") as log:
            return subprocess.Popen(
                self._command(["launch", *self._words, "--detach"]), cwd=self.folder, env=self._environment(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def orch(self, *arguments: str, codes: Sequence[int] = (0,)) -> str:
        """Runs a command of `orch`; any other exit code, or a traceback, ends the rehearsal."""
        done = subprocess.run(
            self._command(arguments), cwd=self.folder, env=self._environment(), text=True, capture_output=True,
            timeout=COMMAND_S, check=False,
        )  # fmt: skip
        if done.returncode not in codes or "Traceback" in done.stderr:
            said = (done.stderr.strip() or done.stdout.strip())[-2000:]
            raise DrillFailed(f"orch {arguments[0]} ended with exit code {done.returncode}: {said}")
        return done.stdout

    def status(self) -> dict[str, Any]:
        """Asks `orch status`."""
        shown: dict[str, Any] = json.loads(self.orch("status", str(self.run), "--json"))
        return shown

    def trace(self) -> Trace:
        """Reads what the run has left so far."""
        return read_trace(self.run)

    def wait(self, question: Callable[[], T], what: str, timeout_s: float = WAIT_S) -> T:
        """Asks until the answer is yes, and returns it."""
        deadline = time.monotonic() + timeout_s
        while not (answer := question()):
            if time.monotonic() > deadline:
                raise DrillFailed(f"{what}: not within {timeout_s:.0f} s")
            time.sleep(_LOOK_S)
        return answer

    def wait_for_step(self, number: int) -> None:
        """Waits until the training has finished a step."""
        self.wait(lambda: any(step.number >= number for step in self.trace().steps), f"step {number} of the training")

    def wait_until_over(self, timeout_s: float = RUN_S) -> str:
        """Waits until the run is over, asking `orch status` now and then, and returns its state."""
        deadline = time.monotonic() + timeout_s
        asked = time.monotonic()
        while time.monotonic() < deadline:
            done = (self.run / CHECK / "report" / "manifest.json").is_file()
            if done or time.monotonic() - asked > _ASK_EVERY_S:
                state = str(self.status()["state"])
                if state in _OVER:
                    return state
                asked = time.monotonic()
            time.sleep(_LOOK_S)
        raise DrillFailed(f"the run is not over after {timeout_s:.0f} s; orch status: {self.status()['state']}")

    def harm(self) -> None:
        """Notes that the harm is done now."""
        self.harmed = time.time()

    def workers(self) -> dict[int, int]:
        """Finds the training processes: rank -> process id on this machine."""
        found: dict[int, int] = {}
        for host in self.cluster.hosts:
            for pid in self.cluster.pids(host):
                words = _words(pid)
                if "orchestrator.worker" in words and words[-2] == str(self.run) and words[-1] in self._training:
                    found[_rank(pid)] = pid
        return found

    def host_of(self, rank: int) -> str:
        """Returns the host on which a rank trains."""
        pid = self.workers()[rank]
        return next(host for host in self.cluster.hosts if pid in self.cluster.pids(host))

    def keeper_host(self) -> str:
        """Returns the host on which the training's batch script runs: the first of the job."""
        for host in self.cluster.hosts:
            if any(
                "submitit.core._submit" in _words(pid) and self._is_training(_words(pid))
                for pid in self.cluster.pids(host)
            ):
                return host
        raise DrillFailed("no host runs the training's batch script")

    def checkpoint(self, step: int) -> Path:
        """Names the checkpoint of a step."""
        return self.run / TRAIN / "checkpoints" / f"step_{step:08d}"

    def _is_training(self, words: Sequence[str]) -> bool:
        return any(word.startswith(str(self.run / stage)) for word in words for stage in self._training)

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "orchestrator.cli", *arguments]

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(
            filter(None, [str(Path(orchestrator.__file__).parents[1]), os.environ.get("PYTHONPATH")])
        )
        return {**os.environ, **self.cluster.environment(), "PYTHONPATH": path}


def _words(pid: int) -> list[str]:
    try:
        return [word.decode(errors="replace") for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]]
    except OSError:  # it ended while we looked
        return []


def _rank(pid: int) -> int:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = next((entry for entry in entries if entry.startswith(b"RANK=")), None)
    if found is None:
        raise SurroundingsError(f"process {pid} has no RANK")
    return int(found[5:])
