"""What every place that can run stages must offer, and the one way a plan gets there."""

import getpass
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from orchestrator.errors import Fault, RecipeError
from orchestrator.plan import Plan
from orchestrator.run import Run, RunLock
from orchestrator.state import Launch, StageState, read_state, write_launch, write_state
from orchestrator.supervisor import CANCEL


class Job(Protocol):
    """A run that was handed over. What becomes of it is read from the run folder (`orchestrator.status`)."""

    @property
    def id(self) -> str:
        """Names the job to the one who runs it: a process id, a Slurm job id."""

    def running(self) -> bool:
        """Tells whether somebody still works on the run."""


class Launcher(Protocol):
    """A place that can run stages: this machine, a cluster.

    A whole run is handed over at once: on this machine to one supervisor that holds the run's lock, on a cluster to
    one job a stage, chained by dependencies.
    """

    @property
    def name(self) -> str:
        """Is what `--on` calls it."""

    def check(self, plan: Plan) -> Sequence[Fault]:
        """Lists what stages ask for and this place cannot give. Nothing is started."""

    def submit(self, run: Run, lock: RunLock) -> Job:
        """Hands over a prepared run, with its lock."""


def launch(plan: Plan, launcher: Launcher, code_root: Path, *, command: str, require_clean: bool = False) -> Job:
    """Checks everything, takes the run, prepares its folder and hands it to the launcher."""
    faults = [*plan.faults, *launcher.check(plan)]
    if faults:
        raise RecipeError(faults)
    run = Run(plan.directory)
    with run.lock(command) as lock:
        run.prepare(plan, code_root, require_clean=require_clean)
        (plan.directory / CANCEL).unlink(missing_ok=True)  # a wish of an earlier launch
        (plan.directory / "logs").mkdir(exist_ok=True)
        for stage in plan.stages:
            folder = run.stage_directory(stage.name)
            if stage.action != "reuse":
                write_state(folder, StageState(state="waiting", attempts=read_state(folder).attempts))
        write_launch(plan.directory, _record(plan, launcher))
        return launcher.submit(run, lock)


def _record(plan: Plan, launcher: Launcher) -> Launch:
    return Launch(
        recipe=plan.recipe.name,
        launcher=launcher.name,
        host=socket.gethostname(),
        user=getpass.getuser(),
        started=time.time(),
        stages=tuple({"name": s.name, "action": s.action, "reason": s.reason} for s in plan.stages),
        tracking=asdict(plan.recipe.tracking),
    )
