"""Keeps one stage inside its job: attempt after attempt, until it is done or somebody else has to go on.

Nothing heavy is imported before the ranks run: between two stages of a chain, every tenth of a second is waited for.
"""

import logging
import math
import signal
import sys
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path

from orchestrator.ballast import Ballast
from orchestrator.errors import OrchError
from orchestrator.redaction import screen_output
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
from slurm.attempt import (
    BEGINS,
    KEEPER_LOG,
    LAYOUT,
    Allocation,
    Finished,
    Standing,
    environment_of_ranks,
    logging_to,
    once_slurm_answers,
    run_ranks,
)
from slurm.cluster import reopen_cluster
from slurm.company import Company
from slurm.request import signal_seconds, srun_command

DONE, GIVEN_UP, SURROUNDINGS = 0, 1, 3
FULL_DISK_S = (
    60.0  # for room to say what became of an attempt; then the job ends, and whoever settles sees what happened
)
LONGEST_PAUSE_S = 60.0  # with nodes that wait and do nothing; a longer one is spent in the queue
WORTH_STARTING_S, WORTH_STARTING_SHARE = 60.0, 0.25  # of the job's time that must be left for another attempt in it
WISH_LOST_S = 5.0  # after which ranks that still run have not heard of it
TOLD = frozenset({"preempted", "timeout"})

log = logging.getLogger(__name__)


class Keeper:
    """The one process of a job that decides."""

    def __init__(self, run: Path, stage: str, token: str) -> None:
        """Takes up its place; nothing is touched before the submission is claimed."""
        ear.hold()
        screen_output()
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LAYOUT, force=True)
        self._run, self._name, self._token = run, stage, token
        self._stage = run / stage
        self._now = Standing(stays=True, requeued=False, preempted=False)
        self._begun = 0  # how often a job of this submission has, with this one; 0 before it is claimed
        self._opened = 0  # the last attempt that this keeper began
        self._wished_at: float | None = None  # when we first saw that somebody wants the stage to end

    def work(self) -> int:
        """Returns the job's exit code: 0 only if the stage's outputs are there, so that followers may begin."""
        allocation = Allocation.from_environment()
        try:
            self._begun = submissions.claim(self._stage, self._token, allocation.job_id)
            if not self._begun:
                log.error("job %s is not wanted for %s, or no longer: it leaves", allocation.job_id, self._stage)
                return GIVEN_UP
            self._ballast = Ballast(self._stage / "slurm" / "ballast", patience_s=FULL_DISK_S)
            try:
                return self._keep(allocation)
            finally:
                self._ballast.drop()
        except submissions.Replaced as replaced:
            log.warning("%s: it leaves", replaced)
            return GIVEN_UP
        except Exception as error:
            log.exception("the keeper cannot go on")
            if self._begun:
                from slurm.broken import Broken

                Broken(self._run, self._name, allocation).end(error, self._held, opened=self._opened, now=self._now)
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

    def _held(self) -> AbstractContextManager[None]:
        """Holds the stage to write what became of it, unless that is another keeper's by now."""
        return submissions.kept(self._stage, self._token, self._begun)

    def _take_over(self) -> Decision | None:
        """Ends the attempt that a keeper left open which was lost with its node, or killed before it could."""
        if read_state(self._stage).state != "running":
            return None
        from slurm.judging import blame_node
        from slurm.lost import close_lost, past_of

        past = past_of(self._stage)  # Slurm takes its time, and others must not wait so long for the stage
        with self._held():
            if read_state(self._stage).state != "running":
                return None
            decision = close_lost(self._stage, past)
            last = read_state(self._stage).attempts[-1]
        tell_verdict(self._stage, last, decision)
        ended = Ending(state="failed", cause=last.cause, detail=last.detail, node=last.node)
        blame_node(self._run, self._name, self._cluster, ended)
        log.info("attempt %d was lost with its keeper (%s); %s", last.number, last.cause, decision)
        return decision

    def _attempt(self) -> Decision | None:
        """Runs the ranks once; None if the stage is done."""
        place, cluster = self._allocation, self._cluster
        submission = submissions.read_submission(self._stage)
        signal_s = submission.signal_s if submission is not None else 0
        if save_s := measured_save_s(self._stage):  # Slurm goes by what was known when the job was submitted
            signal_s = max(signal_s, signal_seconds(cluster, self._resources, save_s=save_s))
        with self._held():
            attempt = self._ballast.insist(
                lambda: open_attempt(self._stage, launcher=cluster.name, job_id=place.job_id, nodes=place.nodes)
            )
        self._opened = attempt.number
        self._company.attempt_begins(attempt.number, self._document)
        folder = self._stage / "logs" / f"attempt_{attempt.number}"
        folder.mkdir(parents=True, exist_ok=True)
        with logging_to(folder / KEEPER_LOG):
            log.info("%s: job %s on %s", BEGINS.format(number=attempt.number), place.job_id, ", ".join(place.nodes))
            try:
                finished = once_slurm_answers(
                    lambda: self._start(attempt.number, folder, signal_s), place, tick=self._tick,
                    given_up=lambda: wish_of(self._run, self._name) is not None,
                )  # fmt: skip
            except OSError as error:  # no port, no name, no srun: an attempt that failed, not one that stays open
                finished = Finished(code=SURROUNDINGS, told=False, lines=(f"error: {error}",))
            return self._judge(attempt, finished, signal_s)

    def _start(self, attempt: int, folder: Path, signal_s: int) -> Finished:
        """Runs the ranks, told how much time is left now."""
        cluster = self._cluster
        environment = environment_of_ranks(
            self._allocation, attempt=attempt, interface=cluster.interface, grace_s=cluster.grace_s, signal_s=signal_s,
            tasks_per_node=rank_count(self._resources),
        )  # fmt: skip
        return run_ranks(
            srun_command(cluster, self._document, self._run, self._name), folder, environment, grace_s=cluster.grace_s,
            patience_s=self._patience_s, tick=self._tick,
        )  # fmt: skip

    def _patience_s(self) -> float:
        """Returns how long the first rank may take to start; asked while srun is at work."""
        from orchestrator.heartbeat import limits_of

        return limits_of(self._document).start_s

    def _tick(self) -> None:
        """Is called about once a second while ranks run."""
        self._company.tick()
        if self._wished_at is None and wish_of(self._run, self._name) is not None:
            self._wished_at = time.monotonic()
        if self._wished_at is not None and time.monotonic() > self._wished_at + WISH_LOST_S:
            self._wished_at = math.inf  # once: it may have been sent before there were ranks to hear it
            from slurm import queue

            with suppress(OrchError):
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
        with self._held():
            closed, decision = self._ballast.insist(
                lambda: conclude(
                    self._stage, attempt.number, ending, self._document, again="queued", elsewhere=self._elsewhere()
                )
            )
        tell_verdict(self._stage, closed, decision)
        self._company.attempt_ends(closed)
        log.info("attempt %d: %s %s", closed.number, ending.cause or ending.state, ending.detail)
        if ending.state == "done":
            return None
        log.info("%s", decision)
        from slurm.judging import blame_node

        blame_node(self._run, self._name, self._cluster, ending)
        return decision

    def _pause_here(self, decision: Decision) -> bool:
        """Waits for as long as the decision says; False if the next attempt cannot begin in this job."""
        left_s, limit_s = self._allocation.left_s(), self._allocation.limit_s
        until = time.monotonic() + decision.delay_s
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
            with self._held():
                state = read_state(self._stage)
                if state.state != "done":
                    self._ballast.insist(lambda: write_state(self._stage, replace(state, state="done")))
            self._company.end(done=True)
        except Exception:  # whoever settles sees the outputs too; followers need not die for it
            log.exception("the stage is done, but that could not be written down")
        return DONE

    def _cancel(self) -> int:
        """Somebody wished it before, or between, attempts."""
        from slurm.lost import cancelled, record_unbegun

        with self._held():
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

    def _elsewhere(self) -> bool:
        """Tells whether the cluster has more nodes than the stage needs."""
        most = self._cluster.max_nodes
        return most is None or most > self._resources.nodes
