"""What Slurm says of a job's end, as one of our causes: its state, its exit code, and what its daemons wrote into logs.

Any of these may be missing: accounting is off or late, the log was on the node that died. What is known is enough.
"""

import re
import signal
from collections.abc import Iterable, Sequence

from orchestrator.causes import Cause
from orchestrator.records import record
from orchestrator.verdict import Outside
from slurm.queue import JobFacts

# Slurm's own words for how a job ended -> our cause; None: what its processes say counts
CAUSES: dict[str, Cause | None] = {
    "BOOT_FAIL": "node_failure",
    "CANCELLED": "cancelled",
    "COMPLETED": None,
    "DEADLINE": "timeout",
    "FAILED": None,
    "NODE_FAIL": "node_failure",
    "OUT_OF_MEMORY": "out_of_memory",
    "PREEMPTED": "preempted",
    "REQUEUED": "preempted",  # by somebody's `scontrol requeue`: it goes on where it was
    "REVOKED": "cancelled",
    "STOPPED": "hang",
    "TIMEOUT": "timeout",
}
_ABBREVIATED = {
    "BF": "BOOT_FAIL", "CA": "CANCELLED", "CD": "COMPLETED", "DL": "DEADLINE", "F": "FAILED", "NF": "NODE_FAIL",
    "OOM": "OUT_OF_MEMORY", "PR": "PREEMPTED", "RQ": "REQUEUED", "RV": "REVOKED", "TO": "TIMEOUT",
}  # fmt: skip
_STEPD = re.compile(
    r"(?:slurmstepd|srun|slurmd)[^\n]*\*\*\* (?:JOB|STEP) \S+ ON (?P<node>\S+) CANCELLED AT \S+"
    r"(?: DUE TO (?P<why>[A-Z ]+?))? \*\*\*"
)
_WHY: dict[str, Cause | None] = {
    "TIME LIMIT": "timeout",
    "PREEMPTION": "preempted",
    "NODE FAILURE": "node_failure",
    "JOB REQUEUE": "preempted",
    "TASK FAILURE": None,  # one task ended badly and srun ended the others: the task knows more
    "SIGNAL": None,
}
_OTHERS: tuple[tuple[re.Pattern[str], Cause], ...] = (
    (re.compile(r"Some of (?:your processes|the step tasks) have been OOM Killed|oom[_-]kill event", re.IGNORECASE),
     "out_of_memory"),
    (re.compile(r"Exceeded (?:job|step) memory limit", re.IGNORECASE), "out_of_memory"),
    (re.compile(r"srun: error: Node failure on (?P<node>[\w.\[\],-]+)"), "node_failure"),
    (re.compile(r"srun: error: (?P<node>[\w.\[\],-]+): (?:\S+ )*(?:unresponsive|not responding)", re.IGNORECASE),
     "node_failure"),
    (re.compile(r"error: Unable to create step[^\n]*: (?:Required node not available|Node\S* .* down)", re.IGNORECASE),
     "node_failure"),
    (re.compile(r"error: Task launch for \S+ failed on node (?P<node>[\w.-]+)"), "node_failure"),
)  # fmt: skip
# among several lines the one that explains the others: a lost node has its job requeued, a limit its step cancelled
_RANKING: tuple[Cause, ...] = (
    "node_failure", "preempted", "timeout", "out_of_memory", "cancelled", "communication", "hang",
)  # fmt: skip
_CANCELLED_BY = re.compile(r"by (\w+)")


@record
class Line:
    """A line of a log in which Slurm says why something ended."""

    cause: Cause | None
    node: str | None
    text: str


def outside(facts: JobFacts | None, log_lines: Iterable[str] = ()) -> Outside:
    """Says what Slurm did to a job, from what it knows of it (None: nothing) and from the log of keeper and steps.

    The lines win over a state of FAILED or CANCELLED, in which the reason is lost. A job that was preempted reads
    PENDING once it waits again, and its log alone remembers why.
    """
    lines = [line for text in log_lines if (line := read_line(text)) is not None]
    state = "" if facts is None else state_of(facts.state)
    evidence = [] if facts is None else [_told(facts, state)]
    evidence += list(dict.fromkeys(line.text for line in lines))[:5]
    causes = {line.cause for line in lines if line.cause is not None}
    said = CAUSES.get(state)
    if said is not None and said != "cancelled":
        causes = {said}
    elif said == "cancelled" and not causes:
        causes = {"cancelled"}
    cause = next((cause for cause in _RANKING if cause in causes), None)
    node = next((line.node for line in lines if line.cause == cause and line.node), None)
    if cause is None and facts is not None:
        cause = _by_signal(facts)
    blamed = node if cause in {"node_failure", "communication"} else None
    return Outside(cause=cause, detail=_detail(cause, facts, node), evidence=tuple(evidence), node=blamed)


def state_of(word: str) -> str:
    """Returns the long form of a state as any of Slurm's commands writes it: "CANCELLED by 0", "CANCELLED+", "TO"."""
    first = (word.split() or [""])[0].rstrip("+").upper()
    return _ABBREVIATED.get(first, first)


def read_line(text: str) -> Line | None:
    """Reads why something ended from a line that a daemon of Slurm wrote; None for any other line."""
    stepd = _STEPD.search(text)
    if stepd is not None:
        why = stepd["why"]
        cause: Cause | None = "cancelled" if why is None else _WHY.get(why.strip())
        return Line(cause=cause, node=stepd["node"], text=text.strip()[:300])
    for pattern, cause in _OTHERS:
        found = pattern.search(text)
        if found is not None:
            node = found.groupdict().get("node")
            return Line(cause=cause, node=node, text=text.strip()[:300])
    return None


def _by_signal(facts: JobFacts) -> Cause | None:
    """Judges a keeper that was killed: nobody else can say why."""
    if facts.signal == signal.SIGXCPU:
        return "timeout"
    return "unknown" if facts.signal else None


def _told(facts: JobFacts, state: str) -> str:
    parts: Sequence[str] = (
        f"Slurm ({facts.source}) says {state or 'nothing'} of job {facts.id}",
        f"reason {facts.reason}" if facts.reason else "",
        f"exit code {facts.exit_code}" if facts.exit_code is not None else "",
        f"signal {facts.signal}" if facts.signal else "",
        f"on {', '.join(facts.nodes)}" if facts.nodes else "",
    )
    return "; ".join(filter(None, parts))


def _detail(cause: Cause | None, facts: JobFacts | None, node: str | None) -> str:
    by = _CANCELLED_BY.search(facts.reason) if facts is not None else None
    words: dict[Cause, str] = {
        "preempted": "Slurm took the nodes for another job, or somebody queued it again",
        "timeout": "the job's time was over",
        "node_failure": f"Slurm lost {node or 'a node of the job'}",
        "out_of_memory": "the job's processes needed more memory than it has",
        "cancelled": f"the job was cancelled{f' by user {by[1]}' if by else ''}",
        "communication": "a node of the job could not be reached",
        "hang": "its processes were stopped",
        "unknown": f"the job was killed by signal {facts.signal if facts else None}",
    }
    return words.get(cause, "") if cause is not None else ""
