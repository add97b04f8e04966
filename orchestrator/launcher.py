"""What every place that can run stages must offer, and the one way a plan gets there."""

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from orchestrator.doctor.findings import Finding
from orchestrator.errors import Fault, InputError, RecipeError, RunBusy
from orchestrator.forecast import Forecast
from orchestrator.hardware import Hardware
from orchestrator.lock import user_name
from orchestrator.plan import Plan
from orchestrator.promotion import resolved
from orchestrator.records import record
from orchestrator.run import Run, RunLock
from orchestrator.state import Launch, StageState, read_state, write_launch, write_state
from orchestrator.tracking.addresses import absolute_uri, without_password
from orchestrator.typed import plain, suggestion
from orchestrator.wishes import CANCEL

BETWEEN_TRIES_S = 0.2
MOMENT_S, SETTLING_S = 0.6, 5.0  # for whoever reads a file, and for whoever asks a queue and submits what is missing
SETTLERS = frozenset({"orch status", "orch keeper"})  # the commands as which a run is held by those
CLUSTER = "cluster.yaml"  # in a run folder: the cluster of its last launch there, as it was read then


@record
class Waiting:
    """A job that was handed over and has not begun."""

    job_id: str
    reason: str  # why it waits, in plain words; empty where nobody says
    estimated_start: float | None  # seconds since 1970
    state: str  # the word of the one who keeps the queue: PENDING, ...


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
    one job a stage, chained by dependencies. Whoever does not answer raises SurroundingsError.
    """

    @property
    def name(self) -> str:
        """Is what `--on` calls it."""

    def hardware(self) -> Hardware:
        """Says what its machines are like, as far as it knows."""

    def examine(self, runs: Path) -> Iterable[Finding]:
        """Looks whether it is fit for runs in this folder. Nothing is started."""

    def check(self, plan: Plan) -> Sequence[Fault]:
        """Lists what stages ask for and this place cannot give. Nothing is started."""

    def forecast(self, plan: Plan) -> Mapping[str, Forecast]:
        """Asks where and when each stage to be run would begin; empty where there is no queue. Nothing is started."""

    def submit(self, run: Run, lock: RunLock) -> Job:
        """Hands over a prepared run, with its lock."""

    def settle(self, directory: Path) -> Mapping[str, Waiting]:
        """Brings the run folder up to what is true, and returns the jobs of stages that wait to begin."""

    def holder(self, directory: Path) -> str | None:
        """Names, in a sentence, who works on the run here, other than this process; None = nobody."""

    def cancel(self, directory: Path, stage: str | None, user: str) -> str:
        """Asks what works on the run, or on one stage, to save and end; says what happens now."""


Place = Callable[[Path], Launcher]  # run folder -> where its last launch handed it over


def launch(
    run: Run,
    make: Callable[[], Plan],
    launcher: Launcher,
    code_root: Path,
    *,
    before: Place,
    command: str,
    require_clean: bool = False,
) -> Job:
    """Takes the run, plans and checks it, prepares its folder and hands it to the launcher.

    It is planned once the run is ours: what another launch finished meanwhile must not be archived as stale.
    """
    with _taken(run, before, command) as lock:
        plan = checked(make(), launcher)
        run.prepare(plan, code_root, require_clean=require_clean)
        (plan.directory / CANCEL).unlink(missing_ok=True)  # a wish of an earlier launch
        (plan.directory / CLUSTER).unlink(missing_ok=True)  # without it, nothing of this launch was handed to a cluster
        (plan.directory / "logs").mkdir(exist_ok=True)
        for stage in plan.stages:
            folder = run.stage_directory(stage.name)
            if stage.action != "reuse" and (state := read_state(folder)).state != "waiting":
                write_state(folder, StageState(state="waiting", attempts=state.attempts))
        write_launch(plan.directory, _record(plan, launcher))
        return launcher.submit(run, lock)


def set_aside(plan: Plan, launcher: Launcher, stage: str, *, before: Place, command: str) -> None:
    """Moves the folders of a stage and of everything that follows from it to the archive, so that they run afresh."""
    names = [planned.name for planned in plan.stages]
    if stage not in names:
        raise InputError(f"--from: there is no stage {stage!r}{suggestion(stage, names)}")
    checked(plan, launcher)
    again = {stage}
    for planned in plan.stages:  # in an order in which they can run: followers come later
        if again.intersection(planned.after):
            again.add(planned.name)
    run = Run(plan.directory)
    with _taken(run, before, command):
        for name in names:
            folder = run.stage_directory(name)
            if name in again and folder.is_dir():
                target = plan.directory / "archive" / name / f"redone_{time.time_ns()}"
                target.parent.mkdir(parents=True, exist_ok=True)
                folder.rename(target)


def checked(plan: Plan, launcher: Launcher) -> Plan:
    """Returns the plan if it can be launched there, or raises every fault."""
    faults = [*plan.faults, *launcher.check(plan)]
    if faults:
        raise RecipeError(faults)
    return plan


def take(run: Run, command: str, *, patience_s: float = SETTLING_S) -> RunLock:
    """Takes the run; waits for somebody who only looks at it or settles it, not for one who works on it."""
    began = time.monotonic()
    while True:
        try:
            return run.lock(command)
        except RunBusy:
            settles = (run.holder() or {}).get("command") in SETTLERS
            if time.monotonic() - began > (patience_s if settles else min(MOMENT_S, patience_s)):
                raise
            time.sleep(BETWEEN_TRIES_S)


@contextmanager
def _taken(run: Run, before: Place, command: str) -> Iterator[RunLock]:
    """Holds the run; RunBusy if the jobs of an earlier launch still work on it, wherever that was."""
    place = before(run.directory)
    place.settle(run.directory)
    with take(run, command) as lock:
        place = before(run.directory)  # again: another launch may have ended just before the run was ours
        holder = place.holder(run.directory)
        if holder is not None:
            raise RunBusy(f"{run.directory} is being worked on: {holder}")
        yield lock


def _record(plan: Plan, launcher: Launcher) -> Launch:
    return Launch(
        recipe=plan.recipe.name,
        launcher=launcher.name,
        host=socket.gethostname(),
        user=user_name(),
        started=time.time(),
        stages=tuple({"name": s.name, "action": s.action, "reason": s.reason} for s in plan.stages),
        tracking={
            "uri": _public_uri(plan.recipe.tracking.uri), "experiment": plan.recipe.tracking.experiment,
            "also": list(plan.recipe.tracking.also), "register": plain(resolved(plan)),
        },
        notify=asdict(plan.recipe.notify),
        tflops_per_gpu=launcher.hardware().tflops_per_gpu,
    )  # fmt: skip


def _public_uri(uri: str | None) -> str | None:
    """Makes the address of MLflow absolute and takes the password out: a run folder holds no secrets."""
    return None if uri is None else without_password(absolute_uri(uri, Path.cwd()))
