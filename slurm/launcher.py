"""Runs recipes on a Slurm cluster, without a process that must stay alive: `orch launch --on CLUSTER`."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.doctor.findings import Finding
from orchestrator.errors import Fault, InputError, RunBusy, SurroundingsError
from orchestrator.forecast import Forecast
from orchestrator.hardware import Hardware
from orchestrator.launcher import CLUSTER, MOMENT_S, Waiting, take
from orchestrator.lock import busy
from orchestrator.plan import Plan, PlannedStage
from orchestrator.resources import Resources, rank_count
from orchestrator.run import Run, RunLock
from orchestrator.state import LAUNCH, Launch, read_launch, write_launch
from orchestrator.wishes import ask_to_cancel
from slurm.asking import SlurmAway, SlurmRefused
from slurm.chain import Chain
from slurm.cluster import Cluster, write_cluster
from slurm.controller import Controller
from slurm.queue import Estimate, JobFacts
from slurm.request import cpus_per_task, partition_of
from slurm.sbatch import SubmissionRefused, blamed
from slurm.settling import Settler

# what Slurm puts into file names, and what a container's list of mounts cannot hold
UNUSABLE = ("%", "\\", "\n", "\r")
MOST_NAMED = 8  # stages, in a sentence
UNMOUNTABLE = (",", ":")

log = logging.getLogger(__name__)


class SlurmJob:
    """A chain of jobs that was handed to Slurm."""

    def __init__(self, launcher: "SlurmLauncher", directory: Path, ids: Sequence[str]) -> None:
        """Keeps the ids of the chain, in order."""
        self._launcher = launcher
        self._directory = directory
        self.ids = tuple(ids)

    @property
    def id(self) -> str:
        """Is the id of the first job."""
        return self.ids[0] if self.ids else ""

    def running(self) -> bool:
        """Tells whether any job of the chain waits or runs."""
        return self._launcher.holder(self._directory) is not None


class SlurmLauncher:
    """A Slurm cluster."""

    def __init__(self, cluster: Cluster) -> None:
        """Takes the cluster file; nothing is asked yet."""
        self.cluster = cluster
        self._slurm = Controller(cluster)

    @property
    def name(self) -> str:
        """Is what the cluster calls itself."""
        return self.cluster.name

    def hardware(self) -> Hardware:
        """Says what the cluster file says about its nodes."""
        return self.cluster.hardware

    def examine(self, runs: Path) -> Iterator[Finding]:
        """Asks Slurm whether it would take our jobs, and how it treats them."""
        from slurm.examining import examine

        yield from examine(self.cluster, self._slurm, runs)

    def check(self, plan: Plan) -> Sequence[Fault]:
        """Lists what stages ask for and the cluster cannot give. Slurm is not asked."""
        wanted = [stage for stage in plan.stages if stage.action != "reuse"]
        faults = [fault for stage in wanted for fault in _too_much(stage, self.cluster)]
        return [*faults, *_unusable(Path(os.path.abspath(plan.directory)), self.cluster)]  # noqa: PTH100 - links stay

    def forecast(self, plan: Plan) -> Mapping[str, Forecast]:
        """Asks `sbatch --test-only` once for all stages that ask for the same.

        A stage begins at the earliest when those that it reads from have had all the hours they asked for.
        """
        directory, answers = Path(os.path.abspath(plan.directory)), dict[Resources, Estimate]()  # noqa: PTH100 - links
        forecasts: dict[str, Forecast] = {}
        ends: dict[str, float | None] = {}
        for stage in plan.stages:
            asked = stage.resources
            if stage.action == "reuse" or any(_too_much(stage, self.cluster)):
                continue  # what `check` finds need not be found again
            if asked not in answers:
                answers[asked] = self._slurm.test_only(directory / stage.name, asked)
            answer, partition = answers[asked], partition_of(self.cluster, asked) or ""
            if not answer.valid:
                forecasts[stage.name] = Forecast(queue=partition, refusal=blamed(answer.message))
            else:
                start = _latest([answer.start, *(ends[parent] for parent in stage.after if parent in ends)])
                forecasts[stage.name] = Forecast(queue=partition, estimated_start=start)
            start = forecasts[stage.name].estimated_start
            ends[stage.name] = None if start is None or asked.hours is None else start + asked.hours * 3600
        return forecasts

    def submit(self, run: Run, lock: RunLock) -> SlurmJob:
        """Submits the whole chain and lets go of the run: what comes next, jobs and commands do."""
        launch = read_launch(run.directory)
        if launch is None:
            raise SurroundingsError(f"{run.directory} was never launched: there is no launch.json in it")
        chain = Chain(run.directory, launch, self._slurm)
        try:
            write_cluster(run.directory / CLUSTER, self.cluster)
            chain.submit()
        except SubmissionRefused as refusal:
            self._leave_refused(chain, str(refusal))
            raise
        except SlurmAway as away:
            if not chain.ids:
                chain.forget()
                _end(run.directory, launch, note=str(away))
                raise SlurmAway(f"{away}; nothing was submitted") from away
            told = f"{len(chain.ids)} of {len(chain.stages)} stages are in the queue; the next `orch status` that"
            raise SlurmAway(f"{away}; {told} reaches Slurm submits the others") from away
        finally:
            lock.close()
        if not chain.stages:
            _end(run.directory, launch)
        return SlurmJob(self, run.directory, [job_id for job_id in chain.ids.values() if job_id is not None])

    def settle(self, directory: Path) -> Mapping[str, Waiting]:
        """Brings the run folder up to what is true, and returns the jobs of stages that wait to begin."""
        launch = read_launch(directory)
        if launch is None or launch.ended is not None:
            return {}
        if not _ours(directory):
            return self._look(directory, launch)
        try:
            lock = take(Run(directory), "orch status", patience_s=MOMENT_S)
        except (RunBusy, SurroundingsError, OSError) as error:  # somebody submits or settles, or we may only look
            log.info("%s is not settled by us: %s", directory, error)
            return self._look(directory, launch)
        with lock:
            launch = read_launch(directory)  # again: it may have ended before the lock was ours
            if launch is None or launch.ended is not None:
                return {}
            settler = Settler(Chain(directory, launch, self._slurm), grace_s=self.cluster.grace_s)
            waiting = settler.settle()
            if not settler.alive():
                _end(directory, launch)
            elif not settler.heard:  # what accounting knows is written down; what waits, nobody says
                raise SlurmAway("Slurm does not answer: its controller is away, only accounting was there to ask")
            return waiting

    def holder(self, directory: Path) -> str | None:
        """Names who works on the run, other than this process: a command that submits, or a job."""
        holder = Run(directory).holder()
        if holder is not None and (holder.get("pid"), holder.get("host")) != (os.getpid(), socket.gethostname()):
            return busy(directory)
        launch = read_launch(directory)
        if launch is None or launch.ended is not None:
            return None
        alive = self._alive(directory, launch)
        running = [(name, facts) for name, facts in alive.items() if facts.state != "PENDING"]
        for name, facts in (running or list(alive.items()))[:1]:
            others = f", and {len(alive) - 1} more" if len(alive) > 1 else ""
            where = f" on {', '.join(facts.nodes)}" if facts.nodes else ""
            return f"job {facts.id} ({name}) is {facts.state}{where}{others}; end it with: orch cancel {directory.name}"
        return None

    def cancel(self, directory: Path, stage: str | None, user: str) -> str:
        """Takes what waits out of the queue, of the run or of one stage, and asks what runs to save and end."""
        launch = read_launch(directory)
        if launch is None:
            raise InputError(f"{directory} was never launched")
        ask_to_cancel(directory, stage, user)
        alive = self._alive(directory, launch)
        chain = Chain(directory, launch, self._slurm)
        chosen = [name for name in chain.stages if name in alive and name in _followers(chain, stage)]
        begun = [name for name in chosen if alive[name].state != "PENDING"]
        if begun and _ours(directory):  # a keeper also obeys the word that a colleague leaves
            self._slurm.cancel([alive[name].id for name in begun], signal="TERM")
        self.settle(directory)
        return _told(begun, [name for name in chosen if name not in begun], alive)

    def _leave_refused(self, chain: Chain, note: str) -> None:
        """Ends a launch of which nothing waits. What has begun ends first, or another launch would run beside it."""
        directory, launch, begun = chain.directory, chain.launch, chain.begun()
        if not begun:
            _end(directory, launch, note=note)
            return
        write_launch(directory, replace(launch, notes=(*launch.notes, note)))
        ask_to_cancel(directory, None, launch.user)
        with contextlib.suppress(SlurmAway, SlurmRefused):  # its keeper also reads what was just written
            self._slurm.cancel([job_id for job_id in begun.values() if job_id is not None], signal="TERM")

    def _look(self, directory: Path, launch: Launch) -> Mapping[str, Waiting]:
        return Settler(Chain(directory, launch, self._slurm), grace_s=self.cluster.grace_s).look()

    def _alive(self, directory: Path, launch: Launch) -> dict[str, JobFacts]:
        chain = Chain(directory, launch, self._slurm)
        current = chain.submissions()
        survey = chain.find([found.name for found in current.values()])
        known = {name: survey.latest(found.name) for name, found in current.items()}
        return {name: facts for name, facts in known.items() if facts is not None and not facts.ended_for_good()}


def _latest(moments: Sequence[float | None]) -> float | None:
    known = [moment for moment in moments if moment is not None]
    return max(known) if len(known) == len(moments) else None


def _too_much(stage: PlannedStage, cluster: Cluster) -> Iterator[Fault]:
    key, asked, name = f"stages.{stage.name}.resources", stage.resources, cluster.name
    tasks = rank_count(asked)
    cpus = tasks * (cpus_per_task(cluster, asked) or 1)
    limits: tuple[tuple[str, float | None, float | None, str], ...] = (
        ("nodes", asked.nodes, cluster.max_nodes, "nodes"),
        ("gpus_per_node", asked.gpus_per_node, cluster.gpus_per_node, "GPUs on a node"),
        ("cpus_per_task", cpus, cluster.cpus_per_node, "CPUs on a node"),
        ("memory_gb", asked.memory_gb, cluster.memory_gb_per_node, "GB of memory on a node"),
        ("hours", asked.hours, cluster.max_hours, "hours"),
    )
    for field, amount, limit, what in limits:
        if amount is not None and limit is not None and amount > limit:
            yield Fault(key=f"{key}.{field}", message=f"asks for {amount:g} {what}; {name} has at most {limit:g}")
    if asked.hours is None and cluster.max_hours is not None:
        message = f"must be given: {name} ends every job after at most {cluster.max_hours:g} hours"
        yield Fault(key=f"{key}.hours", message=message)
    if asked.gpus_per_node and tasks > asked.gpus_per_node:
        message = f"asks for {tasks} processes on {asked.gpus_per_node} GPUs: at most one a GPU"
        yield Fault(key=f"{key}.tasks_per_node", message=message)


def _unusable(directory: Path, cluster: Cluster) -> Iterator[Fault]:
    bad = [sign for sign in UNUSABLE if sign in str(directory)]
    if cluster.container.kind != "none":
        bad += [sign for sign in UNMOUNTABLE if sign in str(directory)]
    if bad:
        listed = ", ".join(repr(sign) for sign in bad)
        message = f"{str(directory)!r} holds {listed}, which Slurm cannot have in a path; choose another folder"
        yield Fault(key="runs", message=message)


def _followers(chain: Chain, stage: str | None) -> set[str]:
    """Returns a stage and everything that reads what it makes; all stages without one."""
    if stage is None:
        return set(chain.stages)
    chosen = {stage}
    for name in chain.stages:  # in an order in which they can run
        if chosen.intersection(chain.parents(name)):
            chosen.add(name)
    return chosen


def _told(begun: Sequence[str], waiting: Sequence[str], alive: Mapping[str, JobFacts]) -> str:
    words = []
    if begun:
        words.append(f"asked {_few([f'{name} (job {alive[name].id})' for name in begun])} to save and end")
    if waiting:
        words.append(f"took {_few(waiting)} out of the queue")
    return "; ".join(words) or "there was no job of it any more"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _ours(directory: Path) -> bool:
    """Tells whether this user launched the run: jobs of anybody else are not ours to submit again or to end."""
    return (directory / LAUNCH).stat().st_uid == os.getuid()


def _end(directory: Path, launch: Launch, *, note: str | None = None) -> None:
    notes = launch.notes if note is None else (*launch.notes, note)
    write_launch(directory, replace(launch, ended=time.time(), notes=notes))
