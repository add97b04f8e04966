"""Jobs that ended before their keeper could begin: on a node without the mount, or without the Python that is named.

Nobody in such a job could say anything, and a node that breaks every job is free again at once, so it gets the next one
too. The stage is sent elsewhere; if it begins there, that node is to blame. If it begins nowhere, the node is not.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.retry import Decision, attempts_of
from orchestrator.state import Attempt, Ending, StageState, read_state
from slurm.queue import FORGOTTEN, JobFacts
from slurm.sbatch import carries
from slurm.submissions import Submission, folder_of

MOST_AGAIN = 3  # times a stage is sent elsewhere
PAUSE_S = 30.0  # before the second time, and twice as long before the third: a file server may only be away
MAY_COME_BACK = frozenset({"BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "REVOKED"})
LOST_BEFORE_IT_BEGAN = MAY_COME_BACK | {FORGOTTEN}
WORDS = "ended before its keeper could begin"


def is_stillborn(stage: Path, facts: JobFacts | None) -> bool:
    """Tells whether a job had what it needs, began, and broke by itself."""
    lost = facts is None or facts.killed_by_dependency() or facts.state in LOST_BEFORE_IT_BEGAN
    return not lost and facts is not None and carries(folder_of(stage), facts.id)


def judged(stage: Path, document: Mapping[str, Any], facts: JobFacts) -> tuple[Ending, Decision]:
    """Says how such a job ended, and whether the stage is sent elsewhere."""
    before = [one for one in _latest(attempts_of(read_state(stage), document)) if one.job_id != facts.id]
    nodes = tuple(dict.fromkeys([*(one.nodes[0] for one in before if one.nodes), *facts.nodes[:1]]))
    where = f" on {facts.nodes[0]}" if facts.nodes else ""
    detail = f"job {facts.id} {WORDS}{where} ({facts.state}); see {folder_of(stage) / f'{facts.id}_0_log.err'}"
    ending, on = Ending(state="failed", cause="unknown", detail=detail), ", ".join(nodes)
    if len(before) >= MOST_AGAIN:
        why = f"{len(before) + 1} jobs could not begin, on {on or 'unknown nodes'}: look at their logs and cluster.yaml"
        return ending, Decision(again=False, why=why)
    without = f", without {on}" if on else ""
    why = f"sent elsewhere{without} ({len(before) + 1} of {MOST_AGAIN} times)"
    return ending, Decision(again=True, why=why, place="other", exclude=nodes, delay_s=PAUSE_S * len(before))


def to_blame(state: StageState) -> Iterator[tuple[str, str]]:
    """Yields each node, and why, on which a job could not begin that then began on another one."""
    for place, attempt in enumerate(state.attempts):
        if WORDS in attempt.detail and attempt.nodes:
            later = (one.nodes for one in state.attempts[place + 1 :] if WORDS not in one.detail and one.nodes)
            if any(attempt.nodes[0] not in nodes for nodes in later):
                yield attempt.nodes[0], attempt.detail


def vanished(stage: Path, found: Submission, parents: Mapping[str, str | None]) -> bool:
    """Tells whether a job left the queue that nothing but a human hand, or a controller's lost memory, takes out.

    `parents`: the jobs by which the stages that it waits for are done or alive. A job that began has a log.
    """
    began = any(folder_of(stage).glob(f"{found.job_id}_0_log.*"))
    return found.job_id is not None and not began and all(job in found.after_ids for job in parents.values())


def _latest(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Returns the attempts since a keeper last began."""
    latest: list[Attempt] = []
    for attempt in reversed(attempts):
        if WORDS not in attempt.detail:
            break
        latest.insert(0, attempt)
    return latest
