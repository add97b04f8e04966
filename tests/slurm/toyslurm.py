"""A Slurm of a few lines that dies, forgets and is late on demand, for tests of what the launcher does about it."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.artifacts import Report, write_json
from orchestrator.launcher import Waiting
from orchestrator.resources import Resources
from orchestrator.state import (
    Ending,
    Launch,
    StageState,
    close_attempt,
    open_attempt,
    read_launch,
    read_state,
    write_launch,
    write_state,
)
from slurm import submissions
from slurm.asking import SlurmAway
from slurm.chain import Chain
from slurm.queue import JobFacts, Survey
from slurm.sbatch import QueueFull, SubmissionRefused
from slurm.settling import Settler
from slurm.submissions import Submission


class Killed(BaseException):
    """Stands for kill -9: nobody catches it."""


class ToySlurm:
    """Keeps jobs in memory. `fate` decides what becomes of the next sbatch."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.jobs: dict[str, JobFacts] = {}
        self.after: dict[str, tuple[str, ...]] = {}
        self.late: list[tuple[str, str, tuple[str, ...]]] = []  # sbatches that outlive the launch that began them
        self.answers = True
        self.controller = True
        self.accounting = True
        self.asked_for: list[str] = []  # by name, the last time
        self.refused: set[str] = set()
        self.room: int | None = None  # for so many jobs
        self.fate: Callable[[], str] = lambda: "taken"
        self.asked: list[str] = []
        self.excluded: list[tuple[str, ...]] = []  # by each of those
        self.blamed: set[str] = set()
        self.told: list[str] = []  # stages of which somebody heard that they failed
        self._ids = itertools.count(1)

    def find(self, names: Sequence[str], *, since: float, uid: int) -> Survey:
        del since, uid
        self.asked_for = list(names)
        if not self.answers:
            raise SlurmAway("the toy does not answer")
        jobs: dict[str, list[JobFacts]] = {}
        for job in self.jobs.values():
            if job.name in names:
                jobs.setdefault(job.name, []).append(job)
        known = {name: tuple(found) for name, found in jobs.items()}
        return Survey(
            jobs=known, controller=self.controller, accounting=self.accounting, unaccounted=not self.accounting
        )  # fmt: skip

    def last_ending(self, facts: JobFacts) -> JobFacts:
        return facts

    def signal_s(self, stage: Path, resources: Resources) -> int:  # noqa: ARG002 - as the protocol has it
        return 60

    def left_out(self, resources: Resources, besides: Sequence[str]) -> Sequence[str]:  # noqa: ARG002 - as it has
        return besides

    def blame(self, node: str, detail: str, *, run: str) -> None:  # noqa: ARG002 - as the protocol has it
        self.blamed.add(node)

    def tell_failure(self, stage: Path) -> None:
        self.told.append(stage.name)

    def submit(self, stage: Path, submission: Submission, resources: Resources, delay_s: float) -> str:
        del resources, delay_s
        self.asked.append(stage.name)
        self.excluded.append(submission.exclude)
        if self.room is not None and sum(not job.ended_for_good() for job in self.jobs.values()) >= self.room:
            raise QueueFull("QOSMaxSubmitJobPerUserLimit")
        if stage.name in self.refused:
            raise SubmissionRefused("Invalid partition name specified")
        if not {*submission.after_ids} <= {*self.jobs}:
            raise SubmissionRefused("Job dependency problem")
        fate = self.fate()
        if fate == "killed before":
            raise Killed
        if fate == "late":
            self.late.append((submission.name, submission.token, submission.after_ids))
            raise Killed
        if fate == "away":
            raise SlurmAway("the toy does not answer")
        job_id = self._enter(submission.name, submission.after_ids)
        if fate == "killed after":
            raise Killed
        return job_id

    def mend(self, stage: Path, submission: Submission, job_id: str) -> None:
        pass

    def set_dependency(self, job_id: str, after: Sequence[str]) -> None:
        self.after[job_id] = tuple(after)
        self.jobs[job_id] = dataclasses.replace(self.jobs[job_id], reason="Dependency")

    def cancel(self, job_ids: Sequence[str], *, signal: str | None = None) -> None:
        for job_id in job_ids:
            if signal is None and not self.jobs[job_id].ended_for_good():
                self.end(job_id, "CANCELLED", "by 0")

    def arrive(self) -> None:
        """Lets the oldest sbatch that was given up reach Slurm after all."""
        if self.late:
            name, _, after = self.late.pop(0)
            self._enter(name, after)

    def ready(self) -> list[str]:
        """Returns the jobs that may begin; like Slurm, removes those whose parents ended badly."""
        for job_id, job in list(self.jobs.items()):
            bad = {"FAILED", "CANCELLED", "NODE_FAIL"}
            if job.state == "PENDING" and any(self.jobs[parent].state in bad for parent in self.after[job_id]):
                self.end(job_id, "CANCELLED", "Dependency")
        waiting = [job_id for job_id, job in self.jobs.items() if job.state == "PENDING"]
        return [
            job_id for job_id in waiting if all(self.jobs[parent].state == "COMPLETED" for parent in self.after[job_id])
        ]

    def break_on(self, job_id: str, node: str) -> None:
        """Lets a job end on a node before its keeper can begin."""
        (self.run / self.stage(job_id) / "slurm" / f"{job_id}_submitted.pkl").touch()
        self.jobs[job_id] = dataclasses.replace(self.jobs[job_id], nodes=(node,))
        self.end(job_id, "FAILED")

    def begin(self, job_id: str) -> bool:
        """Begins a job as its keeper would; False if it is a duplicate, which has left already."""
        _, _, rest = self.jobs[job_id].name.partition("-")
        stage, token = rest.split("-")[-2:]
        if not submissions.claim(self.run / stage, token, job_id):
            self.end(job_id, "FAILED")
            return False
        self.jobs[job_id] = dataclasses.replace(self.jobs[job_id], state="RUNNING")
        if read_state(self.run / stage).state == "running":  # the attempt of its keeper that was killed
            close_attempt(self.run / stage, Ending(state="failed", cause="preempted"))
        open_attempt(self.run / stage, launcher="toy", job_id=job_id, nodes=("n1",))
        return True

    def finish(self, job_id: str) -> None:
        """Lets the keeper of a running job do its work and end."""
        self.write_outputs(job_id)
        self.say_done(job_id)

    def write_outputs(self, job_id: str) -> None:
        """Lets the ranks of a running job end well; its keeper has not seen that yet."""
        value = self.run / self.stage(job_id) / "value"
        value.mkdir()
        Report(value).commit("print")

    def say_done(self, job_id: str) -> None:
        """Lets the keeper of a job say that its ranks have ended well, and end."""
        close_attempt(self.run / self.stage(job_id), Ending(state="done"))
        self.end(job_id, "COMPLETED")

    def lose(self, job_id: str) -> None:
        """Takes the node of a job away, with its keeper."""
        self.end(job_id, "NODE_FAIL")

    def queue_again(self, job_id: str) -> None:
        """Puts a job back under its own id, as Slurm does with one whose node is lost or wanted by others."""
        self.end(job_id, "PENDING", "BeginTime")

    def end(self, job_id: str, state: str, reason: str = "") -> None:
        self.jobs[job_id] = dataclasses.replace(self.jobs[job_id], state=state, reason=reason)

    def forget(self, job_id: str) -> None:
        """Purges a job that has ended, as the controller does after MinJobAge."""
        del self.jobs[job_id]

    def stage(self, job_id: str) -> str:
        return self.jobs[job_id].name.split("-")[-2]

    def _enter(self, name: str, after: Sequence[str]) -> str:
        job_id = str(next(self._ids))
        reason = "Dependency" if after else "Priority"
        self.jobs[job_id] = JobFacts(id=job_id, name=name, state="PENDING", reason=reason, submitted=float(job_id))
        self.after[job_id] = tuple(after)
        return job_id


def toy_run(run: Path, stages: dict[str, list[str]]) -> Launch:
    """Writes the folder of a run as a launch leaves it just before it submits: {stage: the stages it reads from}."""
    run.mkdir(parents=True)
    for name, after in stages.items():
        folder = run / name
        folder.mkdir()
        document: dict[str, Any] = {
            "name": name, "stage": "toy", "fingerprint": "print", "after": after, "steps": None,
            "resources": {"nodes": 1, "hours": 1.0},
            "outputs": {"value": {"kind": "report", "path": str(folder / "value")}},
        }  # fmt: skip
        write_json(folder / "stage.json", document)
        write_state(folder, StageState())
    entries = tuple({"name": name, "action": "run", "reason": ""} for name in stages)
    launch = Launch(recipe="toy", launcher="toy", host="here", user="me", started=1000.0, stages=entries)
    write_launch(run, launch)
    return launch


def read(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def submit(run: Path, slurm: ToySlurm) -> None:
    launch = read_launch(run)
    assert launch is not None
    Chain(run, launch, slurm).submit()


def settle(run: Path, slurm: ToySlurm) -> tuple[dict[str, Waiting], bool]:
    launch = read_launch(run)
    assert launch is not None
    settler = Settler(Chain(run, launch, slurm), grace_s=30)
    return dict(settler.settle()), settler.alive()


def work_through(run: Path, slurm: ToySlurm, *, rounds: int = 40) -> Counter[str]:
    """Lets every job that may begin do so and end well, settling in between; counts what ran."""
    ran: Counter[str] = Counter()
    for _ in range(rounds):
        _, alive = settle(run, slurm)
        if not alive:
            break
        for job_id in slurm.ready():
            if slurm.begin(job_id):
                ran[slurm.stage(job_id)] += 1
                slurm.finish(job_id)
    return ran
