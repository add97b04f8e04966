"""The jobs of one launch: one a stage, each asked for on disk first and of Slurm then, after those it reads from."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from orchestrator.planned import planned_stage
from orchestrator.resources import Resources
from orchestrator.retry import Decision
from orchestrator.state import LAUNCH, STATE, Ending, Launch, StageState, outputs_ready, read_state, write_state
from orchestrator.wishes import wish_of
from slurm import submissions
from slurm.asking import SlurmAway, SlurmRefused
from slurm.lost import record_unbegun
from slurm.queue import JobFacts, Survey
from slurm.request import job_name
from slurm.sbatch import QueueFull, SubmissionRefused
from slurm.submissions import Submission

Fate = Literal["done", "alive", "blocked"]  # "alive" = there is, or will be, a job; "blocked" = not in this launch

PURGED = "job dependency problem"  # Slurm's words where it does not know, any more, what a job is to wait for

log = logging.getLogger(__name__)


class Slurm(Protocol):
    """What a chain needs of Slurm."""

    def find(self, names: Sequence[str], *, since: float, uid: int) -> Survey:
        """Says what is known of a user's jobs by name that were submitted since then."""

    def last_ending(self, facts: JobFacts) -> JobFacts:
        """Says how a job that waits again ended before; what is given where nobody knows."""

    def signal_s(self, stage: Path, resources: Resources) -> int:
        """Says how long before the end of its time a stage wants to be told."""

    def left_out(self, resources: Resources, besides: Sequence[str]) -> Sequence[str]:
        """Lists the nodes to leave out: bad ones and, besides, these, as far as enough others remain."""

    def blame(self, node: str, detail: str, *, run: str) -> None:
        """Notes, once, that jobs cannot begin on a node."""

    def tell_failure(self, stage: Path) -> None:
        """Tells whoever wants to know that a stage ended for good without being done."""

    def submit(self, stage: Path, submission: Submission, resources: Resources, delay_s: float) -> str:
        """Hands over the job of a stage and returns its id."""

    def mend(self, stage: Path, submission: Submission, job_id: str) -> None:
        """Gives a job what it carries, if whoever submitted it was killed before it could."""

    def set_dependency(self, job_id: str, after: Sequence[str]) -> None:
        """Lets a waiting job wait for these."""

    def cancel(self, job_ids: Sequence[str], *, signal: str | None = None) -> None:
        """Ends jobs, or only sends them a signal."""


class Chain:
    """The stages that a launch set out to run, in an order in which they can run. The caller holds the run."""

    def __init__(self, directory: Path, launch: Launch, slurm: Slurm) -> None:
        """Reads which stages those are; nothing is asked or written."""
        self.directory = Path(os.path.abspath(directory))  # noqa: PTH100 - resolve() would follow links
        self.launch = launch
        self.slurm = slurm
        self.stages = [entry["name"] for entry in launch.stages if entry["action"] != "reuse"]
        self.documents: Mapping[str, Mapping[str, Any]] = {
            name: planned_stage(self.directory / name, launch.started) for name in self.stages
        }
        self.ids: dict[str, str | None] = {}  # of the jobs that others can wait for; null = Slurm knows none (yet)
        self.fates: dict[str, Fate] = {}
        self.full = False  # the site takes no more jobs of this user for now
        self._doomed: list[str] = []

    def folder(self, name: str) -> Path:
        """Returns the folder of a stage."""
        return self.directory / name

    def parents(self, name: str) -> list[str]:
        """Returns the stages of this launch whose outputs a stage reads."""
        return [parent for parent in self.documents[name]["after"] if parent in self.documents]

    def states(self) -> dict[str, StageState]:
        """Returns what became of each stage so far."""
        return {name: read_state(self.folder(name)) for name in self.stages}

    def submissions(self, states: Mapping[str, StageState] | None = None) -> dict[str, Submission]:
        """Returns the submission of each stage that has one in this launch; of what is done, Slurm says nothing new."""
        undone = [name for name, state in (states or self.states()).items() if state.state != "done"]
        read = ((name, submissions.read_submission(self.folder(name))) for name in undone)
        return {name: found for name, found in read if found is not None and found.launch == self.launch.started}

    def find(self, names: Sequence[str]) -> Survey:
        """Asks Slurm for jobs of this launch; they belong to whoever wrote it down."""
        uid = (self.directory / LAUNCH).stat().st_uid
        return self.slurm.find(names, since=self.launch.started, uid=uid)

    def after_ids(self, name: str) -> tuple[str, ...] | None:
        """Returns the jobs that a stage has to wait for now; what is done needs no waiting.

        None if one of them cannot be told to Slurm: whoever looks next may know it.
        """
        alive = [self.ids.get(parent) for parent in self.parents(name) if self.fates.get(parent) == "alive"]
        known = tuple(job_id for job_id in alive if job_id is not None)
        return known if len(known) == len(alive) else None

    def submit(self) -> None:
        """Submits every stage, each after those whose outputs it reads.

        If Slurm refuses one, those submitted before it are taken back: a chain is there whole or not at all.
        """
        for name in self.stages:
            if wish_of(self.directory, name) is not None:
                return
            try:
                self.fates[name] = self.send(name, submissions.read_submission(self.folder(name)))
            except SubmissionRefused as refusal:
                self._withdraw()
                raise SubmissionRefused(f"stages.{name}: {refusal}; nothing is left in the queue") from None

    def send(self, name: str, instead_of: Submission | None, decision: Decision | None = None) -> Fate:
        """Asks for the job of a stage; what was asked for before (`instead_of`) no longer counts from then on."""
        stage = self.folder(name)
        submissions.make_folder(stage)
        self._notice_done(name)
        self.full = self.full or submissions.refused_lately(stage)
        after_ids = self.after_ids(name)
        if self.full or after_ids is None:
            return "alive"  # the queue has no room, or none for a parent yet: whoever looks next goes on
        resources = Resources(**self.documents[name]["resources"])
        submission = self._described(name, resources, decision, after_ids)
        if not submissions.intend(stage, submission, instead_of=instead_of):
            return "alive"  # its job began after all, or somebody else asks for it
        self._show(stage, "queued", instead_of={"waiting", "failed"})
        try:
            job_id = self.slurm.submit(stage, submission, resources, decision.delay_s if decision else 0.0)
        except QueueFull:
            found = submissions.read_submission(stage)
            if found is not None and found.token == submission.token:
                submissions.withdraw(stage, found, event=submissions.REFUSED)
            raise
        except SubmissionRefused as refusal:
            if PURGED in str(refusal).lower():
                self.take_back(name, None)
                return "alive"  # a parent ended meanwhile; whoever looks next sees how
            self._refuse(stage, submission, str(refusal))
            raise
        self.ids[name] = job_id
        submissions.note_id(stage, submission.token, job_id)
        return "alive"

    def _notice_done(self, name: str) -> None:
        """Notices parents that ended while others were submitted: minutes later, Slurm has forgotten their ids."""
        for parent in self.parents(name):
            if self.fates.get(parent) == "alive" and outputs_ready(self.documents[parent]):
                self.fates[parent] = "done"

    def begun(self) -> dict[str, str | None]:
        """Returns the jobs that have begun, by stage."""
        return {name: found.job_id for name, found in self.submissions().items() if found.state == "claimed"}

    def take_back(self, name: str, job_id: str | None, *, seen: Submission | None = None) -> None:
        """Sees to it that no job of a stage begins; the one there is has to be ended with `end_doomed`."""
        stage = self.folder(name)
        found = seen or submissions.read_submission(stage)
        doomed = job_id if job_id is not None or found is None else found.job_id
        if found is not None and submissions.withdraw(stage, found) and doomed is not None:
            self._doomed.append(doomed)
        self._show(stage, "waiting", instead_of={"queued"})

    def end_doomed(self) -> None:
        """Ends the jobs of stages that were taken back; whatever is missed here is a stray to whoever settles next."""
        doomed, self._doomed = self._doomed, []
        if doomed:
            self.slurm.cancel(doomed)

    def forget(self) -> None:
        """Sees to it that no job begins that Slurm may or may not have heard of; Slurm itself does not answer."""
        for name, found in self.submissions().items():
            if submissions.withdraw(self.folder(name), found):
                self._show(self.folder(name), "waiting", instead_of={"queued"})

    def _show(self, stage: Path, word: Literal["waiting", "queued"], *, instead_of: Collection[str]) -> None:
        with submissions.locked(stage):
            state = read_state(stage)
            if state.state not in instead_of:
                return
            if state.attempts:
                write_state(stage, replace(state, state=word))
            else:  # thousands of stages need not wait for the disk over a word that nothing depends on
                submissions.put(stage / STATE, asdict(replace(state, state=word)))

    def _described(
        self, name: str, resources: Resources, decision: Decision | None, after_ids: tuple[str, ...]
    ) -> Submission:
        token, stage = submissions.new_token(), self.folder(name)
        exclude = self.slurm.left_out(resources, decision.exclude if decision else ())
        return Submission(
            token=token, name=job_name(self.directory.name, name, token), launch=self.launch.started,
            after=tuple(self.parents(name)), after_ids=after_ids, exclude=tuple(sorted(exclude)),
            signal_s=self.slurm.signal_s(stage, resources), hours=resources.hours,
        )  # fmt: skip

    def _refuse(self, stage: Path, submission: Submission, words: str) -> None:
        """Notes that Slurm will not take a stage's job, ever."""
        found = submissions.read_submission(stage)
        if found is None or found.token != submission.token or not submissions.withdraw(stage, found):
            return
        ending = Ending(state="failed", cause="bad_config", detail=words)
        with submissions.locked(stage):
            record_unbegun(stage, ending, launcher=self.launch.launcher, facts=None)

    def _withdraw(self) -> None:
        """Takes the chain back, but for what has begun."""
        for name, found in self.submissions().items():
            if found.state != "claimed":
                self.take_back(name, found.job_id, seen=found)
        try:
            self.end_doomed()
        except (SlurmAway, SlurmRefused) as error:  # they will find that they do not count
            log.warning("jobs of the chain could not be cancelled: %s", error)
