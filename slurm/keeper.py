"""Keeps one stage inside its job: attempt after attempt, until it is done or somebody else has to go on.

Nothing heavy is imported before the ranks run: between two stages of a chain, every tenth of a second is waited for.
"""

import contextlib
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from orchestrator.ballast import Ballast
from orchestrator.errors import OrchError, SurroundingsError
from orchestrator.resources import Resources, rank_count
from orchestrator.retry import Decision, attempts_of, conclude, tell_verdict
from orchestrator.state import (
    Attempt,
    Ending,
    open_attempt,
    outputs_ready,
    read_plain_stage,
    read_state,
    write_state,
)
from orchestrator.stopping import measured_save_s
from orchestrator.wishes import wish_of
from slurm import ear, submissions
from slurm.attempt import BEGINS, KEEPER_LOG, Allocation, Finished, Standing, environment_of_ranks, run_ranks
from slurm.cluster import reopen_cluster
from slurm.company import Company
from slurm.request import signal_seconds, srun_command

if TYPE_CHECKING:
    from slurm.queue import JobFacts

DONE, GIVEN_UP, SURROUNDINGS = 0, 1, 3
LONGEST_PAUSE_S = 60.0  # with nodes that wait and do nothing; a longer one is spent in the queue
WORTH_STARTING_S, WORTH_STARTING_SHARE = 60.0, 0.25  # of the job's time that must be left for another attempt in it
WISH_LOST_S = 5.0  # after which ranks that still run have not heard of it
BLAMED = frozenset({"node_failure", "communication", "hang", "unknown"})
TOLD = frozenset({"preempted", "timeout"})
LAYOUT = "%(asctime)s keeper %(levelname)s: %(message)s"

T = TypeVar("T")

log = logging.getLogger(__name__)


class Keeper:
    """The one process of a job that decides."""

    def __init__(self, run: Path, stage: str, token: str) -> None:
        """Takes up its place; nothing is touched before the submission is claimed."""
        ear.hold()
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LAYOUT, force=True)
        self._run, self._name, self._token = run, stage, token
        self._stage = run / stage
        self._now = Standing(stays=True, requeued=False, preempted=False)
        self._wished_at: float | None = None  # when we first saw that somebody wants the stage to end

    def work(self) -> int:
        """Returns the job's exit code: 0 only if the stage's outputs are there, so that followers may begin."""
        allocation = Allocation.from_environment()
        try:
            if not submissions.claim(self._stage, self._token, allocation.job_id):
                log.error("job %s is not wanted for %s, or no longer: it leaves", allocation.job_id, self._stage)
                return GIVEN_UP
            self._ballast = Ballast(self._stage / "slurm" / "ballast")
            try:
                return self._keep(allocation)
            finally:
                self._ballast.drop()
        except (OrchError, OSError):
            log.exception("the keeper cannot go on")
            return SURROUNDINGS

    def _keep(self, allocation: Allocation) -> int:
        self._allocation = allocation
        self._document = read_plain_stage(self._stage)
        self._cluster = reopen_cluster(self._run / "cluster.yaml")
        self._resources = Resources(**self._document["resources"])
        self._company = Company(self._run, self._name, self._cluster)
        decision = self._take_over()
        while decision is None or decision.again:
            if outputs_ready(self._document):
                return self._finish()
            if wish_of(self._run, self._name) is not None:
                return self._cancel()
            if decision is not None and not self._pause_here(decision):
                from slurm.again import queue_again

                queue_again(self._run, self._name, decision, self._cluster, allocation, self._now)
                return GIVEN_UP
            decision = self._attempt()
        return self._give_up()

    def _take_over(self) -> Decision | None:
        """Ends the attempt that a keeper left open which was lost with its node, or killed before it could."""
        if read_state(self._stage).state != "running":
            return None
        from slurm.lost import close_lost

        past = self._past()  # Slurm takes its time, and others must not wait so long for the stage
        with submissions.locked(self._stage):
            if read_state(self._stage).state != "running":
                return None
            decision = close_lost(self._stage, past)
            last = read_state(self._stage).attempts[-1]
        tell_verdict(self._stage, last, decision)
        self._blame(Ending(state="failed", cause=last.cause, detail=last.detail, node=last.node))
        log.info("attempt %d was lost with its keeper (%s); %s", last.number, last.cause, decision)
        return decision

    def _attempt(self) -> Decision | None:
        """Runs the ranks once; None if the stage is done."""
        place, cluster = self._allocation, self._cluster
        submission = submissions.read_submission(self._stage)
        signal_s = submission.signal_s if submission is not None else 0
        if save_s := measured_save_s(self._stage):  # Slurm goes by what was known when the job was submitted
            signal_s = max(signal_s, signal_seconds(cluster, self._resources, save_s=save_s))
        with submissions.locked(self._stage):
            attempt = self._insist(
                lambda: open_attempt(self._stage, launcher=cluster.name, job_id=place.job_id, nodes=place.nodes)
            )
        folder = self._stage / "logs" / f"attempt_{attempt.number}"
        folder.mkdir(parents=True, exist_ok=True)
        with _logging_to(folder / KEEPER_LOG):
            log.info("%s: job %s on %s", BEGINS.format(number=attempt.number), place.job_id, ", ".join(place.nodes))
            command = srun_command(cluster, self._document, self._run, self._name)
            try:
                environment = environment_of_ranks(
                    place, attempt=attempt.number, interface=cluster.interface, grace_s=cluster.grace_s,
                    signal_s=signal_s, tasks_per_node=rank_count(self._resources),
                )  # fmt: skip
                finished = run_ranks(command, folder, environment, grace_s=cluster.grace_s, tick=self._tick)
            except OSError as error:  # no port, no name, no srun: an attempt that failed, not one that stays open
                finished = Finished(code=SURROUNDINGS, told=False, lines=(f"error: {error}",))
            return self._judge(attempt, finished, signal_s)

    def _tick(self) -> None:
        """Is called about once a second while ranks run."""
        self._company.tick()
        if self._wished_at is None and wish_of(self._run, self._name) is not None:
            self._wished_at = time.monotonic()
        if self._wished_at is not None and time.monotonic() > self._wished_at + WISH_LOST_S:
            self._wished_at = math.inf  # once: it may have been sent before there were ranks to hear it
            from slurm import queue

            with contextlib.suppress(OrchError):
                queue.cancel([self._allocation.job_id], signal="TERM")

    def _judge(self, attempt: Attempt, finished: Finished, signal_s: float) -> Decision | None:
        """Ends the attempt with a verdict and a decision, on disk before anything is done about it."""
        if outputs_ready(self._document):  # Slurm need not be asked
            ending = Ending(state="done")
        else:
            from slurm.judging import ending_of, standing

            self._now = standing(self._allocation, finished)
            ending = ending_of(
                self._stage, self._document, attempt, finished, self._now, left_s=self._allocation.left_s(),
                signal_s=signal_s,
            )  # fmt: skip
            if ending.cause in TOLD:  # Slurm speaks only once to a job
                self._now = replace(self._now, stays=False)
        with submissions.locked(self._stage):
            closed, decision = self._insist(
                lambda: conclude(
                    self._stage, attempt.number, ending, self._document, again="queued", elsewhere=self._elsewhere()
                )
            )
        tell_verdict(self._stage, closed, decision)
        log.info("attempt %d: %s %s", closed.number, ending.cause or ending.state, ending.detail)
        if ending.state == "done":
            return None
        log.info("%s", decision)
        self._blame(ending)
        return decision

    def _pause_here(self, decision: Decision) -> bool:
        """Waits for as long as the decision says; False if the next attempt cannot begin in this job."""
        left_s, limit_s, until = (
            self._allocation.left_s(),
            self._allocation.limit_s,
            time.monotonic() + decision.delay_s,
        )
        worth_s = decision.delay_s + min(WORTH_STARTING_S, WORTH_STARTING_SHARE * (limit_s or 0.0))
        elsewhere = set(decision.exclude).intersection(self._allocation.nodes)
        if not self._now.stays or elsewhere or decision.delay_s > LONGEST_PAUSE_S:
            return False
        if left_s is not None and left_s < worth_s:
            return False
        while time.monotonic() < until and wish_of(self._run, self._name) is None:
            if ear.listen(min(1.0, until - time.monotonic())) == signal.SIGTERM:
                self._now = replace(self._now, stays=False)
                return False
        return True

    def _finish(self) -> int:
        try:
            with submissions.locked(self._stage):
                state = read_state(self._stage)
                if state.state != "done":
                    self._insist(lambda: write_state(self._stage, replace(state, state="done")))
            self._company.end(done=True)
        except (OrchError, OSError):  # whoever settles sees the outputs too; followers need not die for it
            log.exception("the stage is done, but that could not be written down")
        return DONE

    def _cancel(self) -> int:
        """Somebody wished it before, or between, attempts."""
        from slurm.lost import cancelled, record_unbegun

        with submissions.locked(self._stage):
            state, ending = read_state(self._stage), cancelled(self._run, self._name, None)
            if attempts_of(state, self._document):
                write_state(self._stage, replace(state, state="cancelled"))
            else:
                record_unbegun(self._stage, ending, launcher=self._cluster.name, facts=None)
        log.info("%s", ending.detail)
        self._company.end(done=False)
        return GIVEN_UP

    def _give_up(self) -> int:
        last = read_state(self._stage).attempts[-1]
        if last.state == "failed":
            self._company.hear_of_end()
        if self._now.requeued:
            from slurm import queue

            queue.cancel([self._allocation.job_id])
        self._company.end(done=False)
        return GIVEN_UP

    def _blame(self, ending: Ending) -> None:
        """Lets the ledger of this cluster know of a node that may be to blame."""
        if ending.node is not None and ending.cause in BLAMED:
            from slurm.nodes import UNFIT, blame

            unfit = (self._stage / "logs").glob(f"attempt_*/node_{ending.node}.json")
            cause = UNFIT if ending.cause == "node_failure" and any(unfit) else ending.cause
            blame(self._cluster, ending.node, cause, ending.detail, run=self._run.name)

    def _past(self) -> "JobFacts | None":
        """Returns how this job ended before Slurm began it again, or, of another one, what is known of it."""
        from slurm import queue

        found = submissions.read_submission(self._stage)
        try:
            facts = None if found is None else queue.look([found.name]).get(found.name)
            return None if facts is None else queue.last_ending(facts)
        except SurroundingsError as error:
            log.warning("how the last attempt ended is not known: %s", error)
            return None

    def _elsewhere(self) -> bool:
        """Tells whether the cluster has more nodes than the stage needs."""
        most = self._cluster.max_nodes
        return most is None or most > self._resources.nodes

    def _insist(self, write: Callable[[], T]) -> T:
        """Writes, on a full disk with the room that is kept for it."""
        try:
            return write()
        except OSError:
            self._ballast.drop()
            return write()


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Writes this process's log beside those of the ranks too."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(LAYOUT))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
