"""Brings the jobs of a launch and what is written of them together again, whoever died in between.

It goes by what is on disk and by what Slurm says, never by who did what before: so anybody may settle at any time, as
often as they like. It finishes what a killed launch left out, asks again for what was lost, ends the attempts of
keepers that are gone, and lets nobody wait for a job that will not end well.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace

from orchestrator.launcher import Waiting
from orchestrator.retry import Decision
from orchestrator.state import Ending, StageState, outputs_ready, read_state, write_state
from orchestrator.wishes import wish_of
from slurm import submissions
from slurm.asking import SlurmRefused
from slurm.chain import Chain, Fate
from slurm.lost import NOBODY, cancelled, close_lost, may_live, name_who, record_unbegun, waited_in_vain
from slurm.queue import JobFacts, Survey
from slurm.reasons import in_words
from slurm.sbatch import QueueFull, SubmissionRefused
from slurm.stillborn import is_stillborn, judged, to_blame, vanished
from slurm.submissions import Submission

MOST_SUBMISSIONS = 5  # of a stage in one launch whose jobs Slurm lost before any could begin
NEVER = "DependencyNeverSatisfied"
ACCOUNTING_LATE_S = 10.0
OVERDUE_S = 60.0  # beyond the grace of the cluster: a job that was asked to save and end is ended

log = logging.getLogger(__name__)


class Settler:
    """Settles one chain. The caller holds the run."""

    def __init__(self, chain: Chain, *, grace_s: float) -> None:
        """Takes the chain; `grace_s` is what a job has for saving once it was asked to end."""
        self._chain = chain
        self._grace_s = grace_s
        self._curious = False
        self._failed: list[str] = []
        self.heard = True  # the controller answered, and not accounting alone

    def settle(self) -> Mapping[str, Waiting]:
        """Brings every stage up to what is true; returns the jobs that wait."""
        chain, states = self._chain, self._chain.states()
        current, launched = chain.submissions(states), chain.launch.started
        undone = [name for name, state in states.items() if state.state != "done"]  # of a thousand, most often few
        strays = [
            stray for name in undone for stray in submissions.strays(chain.folder(name), launched, current.get(name))
        ]
        survey = chain.find([*(found.name for found in current.values()), *strays])
        self.heard = survey.controller
        self._end_strays(strays, survey)
        waiting: dict[str, Waiting] = {}
        for name in chain.stages:
            found, state = current.get(name), states[name]
            facts = survey.latest(found.name) if found is not None else None
            chain.ids[name] = facts.id if facts is not None and not facts.ended_for_good() else None
            state = state if state.state == "done" else read_state(chain.folder(name))  # Slurm took its time
            self._settle_guarded(name, state, found, facts, survey)
            if facts is not None and facts.state == "PENDING" and chain.fates[name] == "alive":
                waiting[name] = self._waiting(name, facts)
        chain.end_doomed()
        for name in self._failed:  # no keeper lived to tell it
            chain.slurm.tell_failure(chain.folder(name))
        return waiting

    def look(self) -> Mapping[str, Waiting]:
        """Only returns the jobs that wait, for whoever may not write here."""
        current = self._chain.submissions()
        survey = self._chain.find([found.name for found in current.values()])
        known = {name: survey.latest(found.name) for name, found in current.items()}
        return {name: self._waiting(name, facts) for name, facts in known.items() if facts and facts.state == "PENDING"}

    def alive(self) -> bool:
        """Tells, once it is settled, whether anything of the launch is still to come."""
        return self._curious or "alive" in self._chain.fates.values()

    def _settle_guarded(
        self, name: str, state: StageState, found: Submission | None, facts: JobFacts | None, survey: Survey
    ) -> None:
        chain = self._chain
        for node, detail in to_blame(state):
            chain.slurm.blame(node, detail, run=chain.directory.name)
        try:
            chain.fates[name] = self._settle(name, state, found, facts, survey)
        except QueueFull as full:
            log.info("%s: %s", name, full)
            chain.fates[name], chain.full = "alive", True
        except SubmissionRefused as refusal:
            log.warning("%s: %s", name, refusal)
            chain.fates[name] = "blocked"
        if chain.fates[name] == "blocked" and not _over(state) and read_state(chain.folder(name)).state == "failed":
            self._failed.append(name)

    def _settle(
        self, name: str, state: StageState, found: Submission | None, facts: JobFacts | None, survey: Survey
    ) -> Fate:
        lives = facts is not None and not facts.ended_for_good()
        if state.state == "done" or outputs_ready(self._chain.documents[name]):
            if state.state != "done":
                if lives:
                    self._curious = True  # its keeper is about to say so
                else:
                    self._finish(name)
            return "done"
        if _over(state):
            self._learn_who(name, state, facts, lives=lives)
            return "blocked"
        if facts is not None and found is not None and lives:
            return self._keep(name, found, facts)
        if found is not None and may_live(self._chain.folder(name), found, facts, survey):
            return "alive"
        if self._is_blocked(name) and state.state != "running":
            self._chain.take_back(name, None)
            return "blocked"
        return self._ask_again(name, found, facts, survey)

    def _ask_again(self, name: str, found: Submission | None, facts: JobFacts | None, survey: Survey) -> Fate:
        """Nothing waits or runs for a stage that is not done: asks again, unless that would be in vain."""
        if found is None and wish_of(self._chain.directory, name) is not None:
            return self._give_up(name, facts)
        if found is None:  # whoever launched was killed before this stage had its turn
            return self._chain.send(name, submissions.read_submission(self._chain.folder(name)))
        return self._bury(name, found, facts) if found.state == "claimed" else self._replace(name, found, facts, survey)

    def _finish(self, name: str) -> None:
        """The outputs are there, and the keeper that would have said so is gone."""
        stage = self._chain.folder(name)
        with submissions.locked(stage):
            state = read_state(stage)
            if state.state == "running":
                close_lost(stage, None)
            else:
                write_state(stage, replace(state, state="done"))

    def _keep(self, name: str, found: Submission, facts: JobFacts) -> Fate:
        """The job waits or runs: writes down its id if nobody did, and lets it wait for the right ones."""
        chain, stage = self._chain, self._chain.folder(name)
        if found.state == "intent":
            chain.slurm.mend(stage, found, facts.id)
            submissions.note_id(stage, found.token, facts.id)
        wish = wish_of(chain.directory, name)
        if facts.state != "PENDING":
            if wish is not None and time.time() > float(wish.get("time", 0)) + self._grace_s + OVERDUE_S:
                chain.slurm.cancel([facts.id])
            return "alive"
        if self._is_blocked(name) or wish is not None or not self._goes_on(name, found, facts):
            chain.take_back(name, facts.id)
            return "blocked" if self._is_blocked(name) or wish is None else self._give_up(name, facts)
        wanted = chain.after_ids(name)
        if wanted is None:
            return "alive"  # the old dependency, even one that is never satisfied, keeps it waiting
        if facts.reason == NEVER or not set(wanted) <= set(found.after_ids):
            try:
                chain.slurm.set_dependency(facts.id, wanted)
                submissions.note_dependency(stage, found.token, wanted)
            except SlurmRefused as refusal:  # it began or ended meanwhile: whoever looks next sees which
                log.info("%s: job %s cannot be told to wait for others: %s", name, facts.id, refusal)
        return "alive"

    def _goes_on(self, name: str, found: Submission, facts: JobFacts) -> bool:
        """Slurm may have queued a job again whose keeper it killed: that attempt is over, and counts."""
        stage = self._chain.folder(name)
        state = read_state(stage)
        if state.state != "running" or state.attempts[-1].job_id != facts.id:
            return True
        before = self._chain.slurm.last_ending(facts)  # takes its time: a keeper must not wait so long for its stage
        with submissions.locked(stage):
            if submissions.read_submission(stage) != found or read_state(stage) != state:
                return True  # it began again while we looked elsewhere
            decision = close_lost(stage, before)
            if decision.again:
                write_state(stage, replace(read_state(stage), state="queued"))
            return decision.again

    def _bury(self, name: str, found: Submission, facts: JobFacts | None) -> Fate:
        """The keeper had begun, and its job is gone: ends its attempt, and asks again if that is worth it."""
        stage, decision = self._chain.folder(name), Decision(again=True, why="its job is gone")
        with submissions.locked(stage):
            if submissions.read_submission(stage) != found:
                return "alive"  # it began again a moment ago
            wish = wish_of(self._chain.directory, name)
            if read_state(stage).state == "running":
                decision = close_lost(stage, facts)
            elif wish is not None or (facts is not None and facts.state == "CANCELLED"):
                self._record(name, cancelled(self._chain.directory, name, facts), facts)
                return "blocked"
            elif found.job_id not in {attempt.job_id for attempt in read_state(stage).attempts}:
                ending = self._broken(name, found, facts)  # it claimed, and broke before it could begin
                if ending is not None:
                    self._record(name, ending, facts)
                    return "blocked"
        if not decision.again or self._is_blocked(name):
            return "done" if read_state(stage).state == "done" else "blocked"
        return self._chain.send(name, found, decision)

    def _replace(self, name: str, found: Submission, facts: JobFacts | None, survey: Survey) -> Fate:
        """The job never began, and there is none any more: asks again, unless somebody or something was against it."""
        stage, decision = self._chain.folder(name), Decision(again=False, why="")
        parents = [read_state(self._chain.folder(parent)) for parent in self._chain.parents(name)]
        by_hand = facts is not None and facts.state == "CANCELLED" and not waited_in_vain(facts, found, parents)
        if by_hand or wish_of(self._chain.directory, name) is not None:
            ending: Ending | None = cancelled(self._chain.directory, name, facts)
        elif facts is not None and is_stillborn(stage, facts):
            ending, decision = judged(stage, self._chain.documents[name], facts)
        else:
            ending = self._gone(name, found, facts, survey) or self._lost_too_often(name, found)
        if ending is None:
            return self._chain.send(name, found)
        with submissions.locked(stage):
            if submissions.read_submission(stage) != found:
                return "alive"
            attempts = read_state(stage).attempts
            if not (attempts and facts is not None and attempts[-1].job_id == facts.id):  # noted, but not sent again
                self._record(name, ending, facts, str(decision) if decision.why else "")
        return self._chain.send(name, found, decision) if decision.again else "blocked"

    def _broken(self, name: str, found: Submission, facts: JobFacts | None) -> Ending | None:
        """Says why asking again would be in vain for a stage whose keeper claimed it and no more; None if not."""
        if facts is not None and is_stillborn(self._chain.folder(name), facts):
            ending, _ = judged(self._chain.folder(name), self._chain.documents[name], facts)
            return ending
        return self._lost_too_often(name, found)

    def _gone(self, name: str, found: Submission, facts: JobFacts | None, survey: Survey) -> Ending | None:
        """Says what can be said of a waiting job that vanished from a cluster where nobody keeps accounts."""
        chain, parents = self._chain, dict[str, str | None]()
        for parent in chain.parents(name):
            attempts = read_state(chain.folder(parent)).attempts
            by = attempts[-1].job_id if attempts else None
            parents[parent] = chain.ids[parent] if chain.fates[parent] == "alive" else by
        if facts is not None or not survey.unaccounted or not vanished(chain.folder(name), found, parents):
            return None
        detail = f"job {found.job_id} left the queue before it began, and this cluster keeps no accounts that say why"
        advice = f"if it is to go on: orch resume {chain.directory.name}"
        return Ending(state="failed", cause="unknown", detail=f"{detail} (cancelled by hand?); {advice}")

    def _lost_too_often(self, name: str, found: Submission) -> Ending | None:
        times = submissions.count(self._chain.folder(name), self._chain.launch.started)
        if times < MOST_SUBMISSIONS:
            return None
        detail = f"{times} jobs were lost before any could begin, the last of them {found.job_id or found.name}"
        return Ending(state="failed", cause="unknown", detail=detail)

    def _give_up(self, name: str, facts: JobFacts | None) -> Fate:
        """Somebody wished, with our command, that a stage ends, and no job of it is left."""
        stage = self._chain.folder(name)
        with submissions.locked(stage):
            ending = cancelled(self._chain.directory, name, facts)
            if read_state(stage).state == "running":
                close_lost(stage, facts)
            else:
                self._record(name, ending, facts)
        return "blocked"

    def _learn_who(self, name: str, state: StageState, facts: JobFacts | None, *, lives: bool) -> None:
        """Somebody cancelled a job by hand: its keeper could not know who, and Slurm tells once the job is gone."""
        if state.state != "cancelled" or not state.attempts or state.attempts[-1].detail != NOBODY:
            return
        known = facts is not None and facts.reason.startswith("by ")
        # the controller may know of an end before accounting does, and only accounting knows who
        self._curious |= lives or (not known and time.time() - (state.attempts[-1].ended or 0.0) < ACCOUNTING_LATE_S)
        stage = self._chain.folder(name)
        with submissions.locked(stage):
            if not lives and read_state(stage) == state:
                name_who(stage, facts)

    def _record(self, name: str, ending: Ending, facts: JobFacts | None, decision: str = "") -> None:
        launcher = self._chain.launch.launcher
        record_unbegun(self._chain.folder(name), ending, launcher=launcher, facts=facts, decision=decision)

    def _end_strays(self, names: list[str], survey: Survey) -> None:
        """Ends jobs of submissions that no longer count: they would only find out when they begin."""
        ids = [job.id for name in names for job in survey.jobs.get(name, ()) if not job.ended_for_good()]
        if ids:
            log.warning("jobs %s are of submissions that were given up; they are cancelled", ", ".join(ids))
            self._chain.slurm.cancel(ids)

    def _is_blocked(self, name: str) -> bool:
        return any(self._chain.fates[parent] == "blocked" for parent in self._chain.parents(name))

    def _waiting(self, name: str, facts: JobFacts) -> Waiting:
        fates = self._chain.fates
        after = [parent for parent in self._chain.parents(name) if fates.get(parent, "alive") == "alive"]
        reason = in_words(facts.reason, after, job_id=facts.id, run=self._chain.directory.name)
        return Waiting(job_id=facts.id, reason=reason, estimated_start=facts.estimated_start, state=facts.state)


def _over(state: StageState) -> bool:
    """Tells whether a stage has ended in this launch; one that is to be tried again has not."""
    if state.state != "failed":
        return state.state == "cancelled"
    return not (state.attempts and state.attempts[-1].decision.startswith("again"))
