"""Whether a stage that ended without its outputs is tried again, where, and why; from its attempts alone.

Progress is the currency: what counts is how many attempts have ended at the same saved step. An attempt that saved
something new begins a new count. One that was preempted costs nothing, up to a number at which somebody should ask why
the stage never comes to save anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from orchestrator.causes import Cause
from orchestrator.journal import Journal
from orchestrator.records import record
from orchestrator.state import Attempt, Ending, StageState, State, ended_attempt, read_state, write_closed

_FREE: frozenset[Cause] = frozenset({"preempted"})  # the next attempt finds what this one found
_SUSPECT: frozenset[Cause] = frozenset({"hang", "unknown", "disk"})  # a node's fault if one node shows it twice running
_ADVICE: Mapping[Cause, str] = {
    "out_of_memory": "it would run out of memory again; ask for more memory, or a smaller micro_batch",
    "bad_data": "the data would be as damaged again",
    "diverged": "it would diverge again, as every step is a function of recipe and seed",
    "bad_config": "the recipe or a file it names must be changed first",
    "code_error": "the code must be changed first",
    "cancelled": "somebody wanted it to end",
}


@record
class RetryPolicy:
    """When a stage is tried again. Never part of a fingerprint."""

    attempts: int = 3  # that end at the same saved step, whatever for, and then no more
    preemptions: int = 20  # that end at the same saved step, beside those attempts, and then no more
    never: tuple[Cause, ...] = ("out_of_memory", "bad_data", "diverged", "bad_config", "code_error", "cancelled")
    exclude: tuple[Cause, ...] = ("node_failure", "communication")  # tried again without the node that is to blame
    delay_s: float = 5.0  # before the second retry at the same step, and twice as long before each one after it
    disk_delay_s: float = 30.0  # before the first one if a disk is full or a file system away, doubled likewise
    most_delay_s: float = 300.0

    def __post_init__(self) -> None:
        """Refuses what no retry can keep to."""
        if self.attempts < 1:
            raise ValueError("attempts must be at least 1: 1 = no retry but after preemption")
        if self.preemptions < 1:
            raise ValueError("preemptions must be at least 1: 1 = a stage that is preempted ends")
        for name in ("delay_s", "disk_delay_s", "most_delay_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0")


@record
class Decision:
    """What is done after an attempt."""

    again: bool
    why: str
    place: Literal["same", "other"] = "same"  # "other": not on the nodes in `exclude`
    exclude: tuple[str, ...] = ()
    delay_s: float = 0.0  # to wait before it is tried again

    def __str__(self) -> str:
        """Reads "again: ..." or "not again: ..."."""
        return f"{'again' if self.again else 'not again'}: {self.why}"


def policy_of(document: Mapping[str, Any]) -> RetryPolicy:
    """Reads the policy in a `stage.json`; the usual one if it has none."""
    plain = document.get("retry", {})
    values = {field.name: plain[field.name] for field in fields(RetryPolicy) if field.name in plain}
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return RetryPolicy(**{**values, **lists})


def attempts_of(state: StageState, document: Mapping[str, Any]) -> tuple[Attempt, ...]:
    """Returns the attempts of the latest launch: a launch, by a human, begins with a new count."""
    return state.attempts[document.get("earlier_attempts", 0) :]


def decide(attempts: Sequence[Attempt], policy: RetryPolicy, *, elsewhere: bool = True) -> Decision:
    """Decides what follows the last of these attempts: those of one launch (`attempts_of`), in order, all closed.

    `elsewhere` tells whether there are other nodes to go to.
    """
    last, alike = attempts[-1], _at_the_same_step(attempts)
    cause: Cause = last.cause or "unknown"
    against = _against(attempts, alike, cause, policy)
    if against:
        return Decision(again=False, why=against)
    if cause in _FREE:
        return Decision(again=True, why=f"{cause} costs nothing: it goes on at step {last.saved_step or 0}")
    where = _where(last)
    exclude = _to_leave_out(alike, cause, policy) if elsewhere else ()
    without = f", without {', '.join(exclude)}" if exclude else ""
    return Decision(
        again=True,
        why=f"{cause}: attempt {len(alike) + 1} of {policy.attempts} {where}{without}",
        place="other" if exclude else "same",
        exclude=exclude,
        delay_s=_delay_s(cause, len(alike), policy),
    )


def conclude(
    folder: Path, number: int, ending: Ending, document: Mapping[str, Any], *, again: State, elsewhere: bool = True
) -> tuple[Attempt, Decision]:
    """Ends an attempt, decides what follows, and writes down both at once: who is killed in between costs no stage.

    `again` is the state of a stage that is to be tried again. The caller holds the stage.
    """
    before = read_state(folder)
    closed = ended_attempt(folder, before, ending, number=number)
    attempts = (*(attempt for attempt in before.attempts if attempt.number < number), closed)
    counted = attempts_of(StageState(state=ending.state, attempts=attempts), document)
    decision = decide(counted, policy_of(document), elsewhere=elsewhere)
    decided = replace(closed, decision=str(decision))
    write_closed(folder, before, decided, state=again if decision.again else ending.state)
    return decided, decision


def tell_verdict(folder: Path, attempt: Attempt, decision: Decision) -> None:
    """Writes verdict and decision into a stage's journal. No process of the stage may be running."""
    journal = Journal(folder)
    journal.append(
        "verdict", attempt=attempt.number, state=attempt.state, cause=attempt.cause, detail=attempt.detail,
        evidence=list(attempt.evidence), rank=attempt.rank, node=attempt.node, step=attempt.saved_step,
        decision=str(decision),
    )  # fmt: skip
    journal.close()


def _against(attempts: Sequence[Attempt], alike: Sequence[Attempt], cause: Cause, policy: RetryPolicy) -> str:
    """Says why no other attempt follows; nothing if one does."""
    last = attempts[-1]
    if last.state in {"done", "cancelled"}:
        return "it is done" if last.state == "done" else f"cancelled: {_ADVICE['cancelled']}"
    if cause in policy.never:
        return f"{cause}: {_ADVICE.get(cause, 'the recipe says so (retry.never)')}"
    if cause == "timeout" and _worked(last) and not _advanced(last):
        return "timeout: the time was too short to save anything new; ask for more hours, or save more often"
    if cause in _FREE:
        free = len(_ended_here(attempts)) - len(alike)
        told = f"preempted {free} times {_where(last)}, and nothing new was saved; retry.preemptions is"
        return f"{told} {policy.preemptions}" if free >= policy.preemptions else ""
    if len(alike) < policy.attempts:
        return ""
    causes = ", ".join(dict.fromkeys(attempt.cause or "unknown" for attempt in alike))
    count = "one attempt" if len(alike) == 1 else f"{len(alike)} attempts"
    advice = "; ask for more hours" if causes == "timeout" else ""
    return f"{count} ended {_where(last)} ({causes}); retry.attempts is {policy.attempts}{advice}"


def _where(attempt: Attempt) -> str:
    return "without a checkpoint" if attempt.saved_step is None else f"at step {attempt.saved_step}"


def _delay_s(cause: Cause, alike: int, policy: RetryPolicy) -> float:
    first = policy.disk_delay_s if cause == "disk" else 0.0 if alike == 1 else policy.delay_s / 2
    return min(policy.most_delay_s, first * 2.0 ** (alike - 1))


def _advanced(attempt: Attempt) -> bool:
    """Tells whether an attempt saved something new."""
    return (attempt.saved_step or 0) > (attempt.from_step or 0)


def _worked(attempt: Attempt) -> bool:
    """Tells whether an attempt took a step; one that did not may have been told to leave as it began."""
    return (attempt.to_step or 0) > (attempt.from_step or 0)


def _at_the_same_step(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Returns the attempts that count against the last one: those that ended where it did and were not free."""
    return [attempt for attempt in _ended_here(attempts) if attempt.cause not in _FREE]


def _ended_here(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Returns the last attempts that all ended at the same saved step."""
    found: list[Attempt] = []
    for attempt in reversed(attempts):
        if attempt.saved_step != attempts[-1].saved_step:
            break
        found.insert(0, attempt)
    return found


def _to_leave_out(alike: Sequence[Attempt], cause: Cause, policy: RetryPolicy) -> tuple[str, ...]:
    node = alike[-1].node
    if node is None:
        return ()
    before = alike[-2] if len(alike) > 1 else None
    repeats = cause in _SUSPECT and before is not None and (before.cause, before.node) == (cause, node)
    return (node,) if cause in policy.exclude or repeats else ()
