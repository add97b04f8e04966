"""Says how an attempt ended that its keeper has lived to see: what the ranks left, what srun said, what Slurm does."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.resources import Resources, rank_count
from orchestrator.state import Attempt, Ending, outputs_ready
from orchestrator.verdict import Outside, is_full, verdict
from orchestrator.wishes import wish_of
from slurm.attempt import Allocation, Finished, Standing, described
from slurm.cluster import Cluster
from slurm.lost import cancelled, lines_of
from slurm.nodes import shared_fault
from slurm.states import outside

BLAMED = frozenset({"node_failure", "communication", "hang", "unknown"})
EARLY_S = 90.0  # Slurm may send the signal of a time limit a minute before the time it was asked for
_DEAF = re.compile(r"srun: error: \S+: tasks? \S+: User defined signal 2")  # it came before there were ears for it
_ENDED_STEP = re.compile(r"\*\*\* STEP \S+ ON \S+ CANCELLED AT [^ ]+ \*\*\*")


def standing(allocation: Allocation, finished: Finished) -> Standing:
    """Asks Slurm; where it does not answer, what the keeper itself was told counts."""
    told = described(allocation.job_id)
    restarts, state = told.get("Restarts", ""), told.get("JobState", "")
    requeued = restarts.isdigit() and int(restarts) > allocation.restarts
    preempted = told.get("PreemptTime", "None") not in {"None", "Unknown", "N/A"}
    stays = not finished.told and not finished.stuck and not preempted and state in {"RUNNING", ""}
    return Standing(stays=stays, requeued=requeued, preempted=preempted)


def ending_of(
    stage: Path, document: Mapping[str, Any], attempt: Attempt, finished: Finished, now: Standing, *,
    left_s: float | None, signal_s: float,
) -> Ending:  # fmt: skip
    """Returns the verdict on an attempt whose srun has ended."""
    if outputs_ready(document):
        return Ending(state="done")
    if wish_of(stage.parent, stage.name) is not None:
        return cancelled(stage.parent, stage.name, None)
    known, folder = _known(stage, attempt, finished, now), stage / "logs" / f"attempt_{attempt.number}"
    tasks = rank_count(Resources(**document["resources"]))
    found = verdict(
        folder, size=len(attempt.nodes) * tasks, outside=known,
        nodes=[node for node in attempt.nodes for _ in range(tasks)],
    )  # fmt: skip
    if found.state == "done" or finished.stuck:
        found = _silent(stage, finished, known)
    fault = shared_fault(folder, attempt.nodes) if found.cause == "node_failure" else None
    if fault is not None:
        found = replace(found, cause="disk", detail=fault, node=None)
    if found.cause == "cancelled":
        by_whom = cancelled(stage.parent, stage.name, None)
        return replace(found, state="cancelled", detail=by_whom.detail)
    if found.cause == "preempted" and known.cause is None and left_s is not None and left_s < signal_s + EARLY_S:
        told = f"the job's time was nearly over ({left_s:.0f} s left); its ranks were told, and left"
        return replace(found, cause="timeout", detail=f"{told}: {found.detail}")
    return found


def _known(stage: Path, attempt: Attempt, finished: Finished, now: Standing) -> Outside:
    lines: Sequence[str] = finished.lines
    if now.stays:  # srun ends all ranks if one fails, and Slurm then speaks of a step that was cancelled: by us
        lines = [line for line in lines if not _ENDED_STEP.search(line)]
    known = outside(None, [*lines_of(stage, attempt), *lines])
    if known.cause is None and now.preempted:
        detail = "Slurm takes the nodes for another job, after a time of grace"
        return replace(known, cause="preempted", detail=detail)
    return replace(known, asked=finished.told)


def _silent(stage: Path, finished: Finished, known: Outside) -> Ending:
    """No rank left a word, yet the outputs are missing: srun may know."""
    if finished.stuck:
        told = f"srun could start none of the ranks: {_last_words(finished)}"
        return Ending(state="failed", cause="communication", detail=told, evidence=known.evidence, node=known.node)
    if finished.code == 0:
        told = "every process ended well, but outputs are missing"
        return Ending(state="failed", cause="code_error", detail=told, evidence=known.evidence)
    if is_full(stage):
        told = f"there is no space left on the disk of {stage}: no rank could write down why it ended"
        return Ending(state="failed", cause="disk", detail=told, evidence=known.evidence)
    if not finished.begun and (finished.told or any(map(_DEAF.search, finished.lines))):
        told = "the job was told to leave before any of its ranks had begun"
        return Ending(state="failed", cause="preempted", detail=told, evidence=known.evidence)
    said = _last_words(finished)
    told = f"the ranks could not be started, or were killed with all they know: srun ended with {finished.code}; {said}"
    return Ending(state="failed", cause="unknown", detail=told, evidence=(*known.evidence, said), node=known.node)


def _last_words(finished: Finished) -> str:
    said = [line for line in finished.lines if "error" in line.lower() or line.startswith("srun: ")]
    return said[-1] if said else "it said nothing"


def blame_node(run: Path, stage: str, cluster: Cluster, ending: Ending) -> None:
    """Lets the ledger of this cluster know of a node that may be to blame."""
    if ending.node is None or ending.cause not in BLAMED:
        return
    from slurm.nodes import UNFIT, blame

    unfit = (run / stage / "logs").glob(f"attempt_*/node_{ending.node}.json")
    cause = UNFIT if ending.cause == "node_failure" and any(unfit) else ending.cause
    blame(cluster, ending.node, cause, ending.detail, run=run.name)
