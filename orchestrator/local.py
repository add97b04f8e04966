"""Runs stages on this machine: n ranks as n processes, under a supervisor that outlives the terminal."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.errors import Fault, OrchError
from orchestrator.plan import Plan, PlannedStage
from orchestrator.ranks import Patience, rank_count
from orchestrator.run import Run, RunLock
from orchestrator.supervisor import Supervisor

LOCK = "ORCH_LOCK"  # the inherited descriptor that holds the run


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

    name = "local"

    def check(self, plan: Plan) -> Sequence[Fault]:
        """Lists the stages that ask for more nodes or GPUs than this machine has."""
        gpus = visible_gpus()
        return [fault for stage in plan.stages if stage.action != "reuse" for fault in _too_much(stage, gpus)]

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


def visible_gpus() -> int:
    """Counts the GPUs that this process may use, without asking torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([number for number in chosen.split(",") if number.strip() and not number.strip().startswith("-")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _too_much(stage: PlannedStage, gpus: int) -> Iterator[Fault]:
    key, asked = f"stages.{stage.name}.resources", stage.resources
    if asked.nodes > 1:
        yield Fault(key=f"{key}.nodes", message=f"asks for {asked.nodes} nodes, but `--on local` is this one machine")
    if asked.gpus_per_node > gpus:
        yield Fault(key=f"{key}.gpus_per_node", message=f"asks for {asked.gpus_per_node} GPUs, this machine has {gpus}")
    elif asked.gpus_per_node and rank_count(asked) > asked.gpus_per_node:
        message = f"asks for {rank_count(asked)} processes on {asked.gpus_per_node} GPUs: at most one a GPU"
        yield Fault(key=f"{key}.tasks_per_node", message=message)


def main(arguments: list[str]) -> int:
    """Supervises a run until its stages have ended: `python -m orchestrator.local RUN`, started by LocalLauncher."""
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
