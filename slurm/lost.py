"""Closes the attempts of jobs whose keeper can no longer do it: killed with its node, cancelled, forgotten by Slurm."""

import logging
import os
import pwd
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.errors import SurroundingsError
from orchestrator.progress import moved_lately
from orchestrator.resources import Resources, rank_count
from orchestrator.retry import Decision, conclude
from orchestrator.state import (
    Attempt,
    Ending,
    StageState,
    close_attempt,
    open_attempt,
    outputs_ready,
    read_plain_stage,
    read_state,
    write_state,
)
from orchestrator.verdict import verdict
from orchestrator.wishes import wish_of
from slurm import queue
from slurm.attempt import BEGINS
from slurm.queue import FORGOTTEN, JobFacts, Survey
from slurm.states import outside
from slurm.stillborn import MAY_COME_BACK
from slurm.submissions import Submission, folder_of, read_submission

log = logging.getLogger(__name__)

NOBODY = "cancelled outside orch; Slurm does not say by whom"
STILL_WORKS_S = 10.0  # since it got on; progress is written twice a second, where steps are as short
TAIL_BYTES = 1 << 16
_BEGINS = re.compile(BEGINS.format(number=r"(\d+)"))


def may_live(stage: Path, found: Submission, facts: JobFacts | None, survey: Survey) -> bool:
    """Tells whether a job that Slurm does not call alive may yet be: then another would write beside it.

    It may have been queued again and even run while the controller is away; and ranks outlive a controller that forgot
    their job when it restarted, until it finds them on their hosts and ends them.
    """
    if not survey.controller:
        return facts is None or facts.state in MAY_COME_BACK
    forgotten = found.state == "claimed" and (facts is None or facts.state == FORGOTTEN)
    return forgotten and moved_lately(stage, STILL_WORKS_S)


def close_lost(stage: Path, facts: JobFacts | None) -> Decision:
    """Ends the open attempt of a stage whose job is gone, and says whether it is tried again. The caller holds it.

    A stage that is done, or was done just before its keeper was lost, needs no other attempt.
    """
    document, attempt = read_plain_stage(stage), read_state(stage).attempts[-1]
    ending = Ending(state="done") if outputs_ready(document) else _ending(stage, document, attempt, facts)
    return conclude(stage, attempt.number, ending, document, again="queued")[1]


def past_of(stage: Path) -> JobFacts | None:
    """Returns how the job that was last asked for ended before Slurm began it again, or what is known of it."""
    found = read_submission(stage)
    try:
        facts = None if found is None else queue.look([found.name]).get(found.name)
        return None if facts is None else queue.last_ending(facts)
    except SurroundingsError as error:
        log.warning("how the last attempt ended is not known: %s", error)
        return None


def waited_in_vain(facts: JobFacts, found: Submission, parents: Iterable[StageState]) -> bool:
    """Tells whether Slurm removed a job because one that it was to wait for had failed.

    Of a job that came to the queue after that, Slurm gives no reason, for it never waited.
    """
    if facts.killed_by_dependency() or facts.reason.startswith("by "):
        return facts.killed_by_dependency()
    attempts = [attempt for parent in parents for attempt in parent.attempts]
    return any(attempt.state == "failed" and attempt.job_id in found.after_ids for attempt in attempts)


def record_unbegun(stage: Path, ending: Ending, *, launcher: str, facts: JobFacts | None, decision: str = "") -> None:
    """Notes as an attempt what became of a job whose keeper never began. The caller holds the stage."""
    job_id, nodes = (facts.id, facts.nodes) if facts is not None else ("", ())
    open_attempt(stage, launcher=launcher, job_id=job_id, nodes=nodes)
    close_attempt(stage, ending, decision=decision)


def cancelled(run: Path, stage: str, facts: JobFacts | None) -> Ending:
    """Says who cancelled a job: by our command, by hand or as an administrator."""
    wish = wish_of(run, stage)
    if wish is not None:
        return Ending(state="cancelled", cause="cancelled", detail=f"cancelled by {wish.get('user')}")
    detail = NOBODY
    if facts is not None and facts.reason.startswith("by "):
        detail = f"cancelled outside orch by {_user(facts.reason.removeprefix('by '))}"
    return Ending(state="cancelled", cause="cancelled", detail=detail)


def name_who(stage: Path, facts: JobFacts | None) -> None:
    """Adds to an ended attempt who cancelled its job: Slurm tells when all of the job is gone. The caller holds it."""
    state = read_state(stage)
    if facts is not None and facts.reason.startswith("by "):
        last = replace(state.attempts[-1], detail=cancelled(stage.parent, stage.name, facts).detail)
        write_state(stage, replace(state, attempts=(*state.attempts[:-1], last)))


def _ending(stage: Path, document: Mapping[str, Any], attempt: Attempt, facts: JobFacts | None) -> Ending:
    if wish_of(stage.parent, stage.name) is not None:
        return cancelled(stage.parent, stage.name, facts)
    resources = Resources(**document["resources"])
    tasks = rank_count(resources)
    known = outside(facts, lines_of(stage, attempt))
    found = verdict(
        stage / "logs" / f"attempt_{attempt.number}",
        size=resources.nodes * tasks,
        outside=known,
        nodes=[node for node in attempt.nodes for _ in range(tasks)],
    )
    if found.cause == "cancelled":
        who = cancelled(stage.parent, stage.name, facts)
        return Ending(state="cancelled", cause="cancelled", detail=who.detail, evidence=found.evidence)
    if found.state == "done":
        of_it = "Slurm does not know it any more" if facts is None else f"Slurm calls it {facts.state}"
        detail = f"its job {attempt.job_id} ended without saying how; {of_it}"
        return Ending(state="failed", cause="unknown", detail=detail, evidence=known.evidence)
    return found


def lines_of(stage: Path, attempt: Attempt) -> list[str]:
    """Returns what was written into the log of the job since the attempt began; a requeue appends to it.

    Its keeper wrote there that it begins: times of other lines are of other clocks, and of other time zones.
    """
    lines: list[str] = []
    for path in sorted(folder_of(stage).glob(f"{attempt.job_id}_0_log.*")):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            found = file.read().decode(errors="replace").splitlines()
        begun = [(int(mark[1]), index) for index, line in enumerate(found) if (mark := _BEGINS.search(line))]
        first = next((index for number, index in reversed(begun) if number == attempt.number), 0)
        lines += found[first : next((index for number, index in begun if number > attempt.number), None)]
    return lines


def _user(number: str) -> str:
    if not number.isdigit():
        return number
    try:
        name = pwd.getpwuid(int(number)).pw_name
    except KeyError:
        return f"user {number}"
    return f"{name} (you)" if int(number) == os.getuid() else name
