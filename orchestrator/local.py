"""Runs stages on this machine: n ranks as n processes, under a supervisor that outlives the terminal."""

import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.doctor.findings import Finding
from orchestrator.errors import Fault, OrchError, SurroundingsError
from orchestrator.forecast import Forecast
from orchestrator.hardware import Hardware
from orchestrator.launcher import CLUSTER, Waiting
from orchestrator.lock import busy
from orchestrator.plan import Plan, PlannedStage
from orchestrator.ranks import Patience
from orchestrator.redaction import screen_output
from orchestrator.resources import rank_count
from orchestrator.run import Run, RunLock
from orchestrator.state import (
    Ending,
    Launch,
    StageState,
    close_attempt,
    outputs_ready,
    read_launch,
    read_plain_stage,
    read_state,
    write_launch,
    write_state,
)
from orchestrator.supervisor import Supervisor
from orchestrator.wishes import ask_to_cancel

LOCK = "ORCH_LOCK"  # the inherited descriptor that holds the run
NAME = "local"
DRIVER_S = 5.0  # for an answer of the driver

log = logging.getLogger(__name__)


class LocalJob:
    """A supervisor on this machine."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        """Keeps the process, so that it can be waited for."""
        self._process = process

    @property
    def id(self) -> str:
        """Is the supervisor's process id."""
        return str(self._process.pid)

    def running(self) -> bool:
        """Tells whether the supervisor lives."""
        return self._process.poll() is None


class LocalLauncher:
    """This machine."""

    name = NAME

    def hardware(self) -> Hardware:
        """Asks the driver how large the smallest GPU is, where there is one."""
        return Hardware(memory_gb_per_gpu=gpu_memory_gb() if visible_gpus() else None)

    def examine(self, runs: Path) -> Iterator[Finding]:  # noqa: ARG002 - the folder itself everybody looks at
        """Asks the driver and torch about the GPUs."""
        from orchestrator.doctor.devices import device_findings

        yield from device_findings(visible_gpus())

    def check(self, plan: Plan) -> Sequence[Fault]:
        """Lists the stages that ask for more nodes or GPUs than this machine has."""
        gpus = visible_gpus()
        return [fault for stage in plan.stages if stage.action != "reuse" for fault in _too_much(stage, gpus)]

    def forecast(self, plan: Plan) -> Mapping[str, Forecast]:  # noqa: ARG002 - there is no queue on this machine
        """Says nothing: what is launched here begins at once."""
        return {}

    def submit(self, run: Run, lock: RunLock) -> LocalJob:
        """Starts a supervisor in a session of its own; it inherits the lock, so the run is never without a holder."""
        directory = run.directory.resolve()
        path = os.pathsep.join(filter(None, [str(directory / "code"), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, LOCK: str(lock.fileno()), "PYTHONPATH": path}
        with (directory / "logs" / "supervisor.log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "orchestrator.local", str(directory)],
                env=environment, pass_fds=(lock.fileno(),), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return LocalJob(process)

    def settle(self, directory: Path) -> Mapping[str, Waiting]:
        """Closes what a vanished supervisor left open; on this machine nothing waits in a queue."""
        settle(directory)
        return {}

    def holder(self, directory: Path) -> str | None:
        """Names the supervisor, or whoever else holds the run; None if nobody does, or this very process."""
        holder = Run(directory).holder()
        if holder is None or (holder.get("pid"), holder.get("host")) == (os.getpid(), socket.gethostname()):
            return None
        return busy(directory)

    def cancel(self, directory: Path, stage: str | None, user: str) -> str:
        """Leaves word for the supervisor, on whatever machine it works."""
        launch = read_launch(directory)
        ask_to_cancel(directory, stage, user)
        where = "whoever works on it" if launch is None else launch.host
        return f"asked {where} to cancel {stage or directory}; what runs there saves first, if it can"


def settle(directory: Path) -> None:
    """Closes the launch and the attempts of a supervisor that is gone (killed, or its machine went down).

    Leaves the runs of a cluster alone: what became of a job, only its queue can say. A launch that ended before it
    came to the cluster (there is no cluster file in the run folder) handed nothing over, and is closed here.
    """
    launch, run = read_launch(directory), Run(directory)
    if launch is None or launch.ended is not None or run.holder() is not None:
        return
    if launch.launcher != NAME and (directory / CLUSTER).exists():
        return
    try:
        with run.lock("orch status"):
            launch = read_launch(directory)  # again: it may have ended before the lock was ours
            if launch is not None and launch.ended is None:
                _close(directory, launch)
    except (SurroundingsError, OSError) as error:  # somebody was faster, we may only look, or the disk is full
        log.info("%s is not closed by us: %s", directory, error)


def visible_gpus() -> int:
    """Counts the GPUs that this process may use, without asking torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([number for number in chosen.split(",") if number.strip() and not number.strip().startswith("-")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def gpu_memory_gb() -> float | None:
    """Returns the memory of the smallest GPU in units of 10^9 bytes, as nvidia-smi says; None if it says nothing."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]  # in MiB
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DRIVER_S)
        return min(float(line) for line in done.stdout.split()) * 2**20 / 1e9
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _too_much(stage: PlannedStage, gpus: int) -> Iterator[Fault]:
    key, asked = f"stages.{stage.name}.resources", stage.resources
    if asked.nodes > 1:
        yield Fault(key=f"{key}.nodes", message=f"asks for {asked.nodes} nodes, but `--on local` is this one machine")
    if asked.gpus_per_node > gpus:
        yield Fault(key=f"{key}.gpus_per_node", message=f"asks for {asked.gpus_per_node} GPUs, this machine has {gpus}")
    elif asked.gpus_per_node and rank_count(asked) > asked.gpus_per_node:
        message = f"asks for {rank_count(asked)} processes on {asked.gpus_per_node} GPUs: at most one a GPU"
        yield Fault(key=f"{key}.tasks_per_node", message=message)


def _close(directory: Path, launch: Launch) -> None:
    if launch.launcher == NAME:
        gone = f"the supervisor process {launch.pid} on {launch.host} is gone"
    else:
        gone = f"the launch on {launch.host} ended before anything was submitted to {launch.launcher}"
    for entry in launch.stages:
        folder = directory / entry["name"]
        before = read_state(folder)
        if before.state not in {"running", "queued"}:
            continue
        if outputs_ready(read_plain_stage(folder)):
            close_attempt(folder, Ending(state="done"))
        elif before.state == "running":
            close_attempt(folder, Ending(state="failed", cause="unknown", detail=gone))
        else:
            write_state(folder, StageState(state="waiting", attempts=before.attempts))
    write_launch(directory, replace(launch, ended=time.time(), notes=(*launch.notes, gone)))


def main(arguments: list[str]) -> int:
    """Supervises a run until its stages have ended: `python -m orchestrator.local RUN`, started by LocalLauncher."""
    screen_output()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s supervisor %(levelname)s: %(message)s"
    )
    directory = Path(arguments[0])
    lock = RunLock.adopt(directory, int(os.environ.pop(LOCK)), "orch supervisor")
    try:
        Supervisor(directory, lock, Patience()).work()
    except (OrchError, OSError):
        logging.getLogger(__name__).exception("the supervisor cannot go on")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
