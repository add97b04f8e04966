"""Whether a stage that ended without its outputs is tried again, where, and why; from its attempts alone.

Progress is the currency: what counts is how many attempts have ended at the same saved step. An attempt that saved
something new begins a new count, and one that was preempted is not counted at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from orchestrator.causes import Cause
from orchestrator.journal import Journal
from orchestrator.records import record
from orchestrator.state import Attempt, StageState

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
    never: tuple[Cause, ...] = ("out_of_memory", "bad_data", "diverged", "bad_config", "code_error", "cancelled")
    exclude: tuple[Cause, ...] = ("node_failure", "communication")  # tried again without the node that is to blame
    delay_s: float = 5.0  # before the second retry at the same step, and twice as long before each one after it
    disk_delay_s: float = 30.0  # before the first one if a disk is full or a file system away, doubled likewise
    most_delay_s: float = 300.0

    def __post_init__(self) -> None:
        """Refuses what no retry can keep to."""
        if self.attempts < 1:
            raise ValueError("attempts must be at least 1: 1 = no retry but after preemption")
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
    last = attempts[-1]
    cause: Cause = last.cause or "unknown"
    if last.state == "done":
        return Decision(again=False, why="it is done")
    if cause in _FREE:
        return Decision(again=True, why=f"{cause} costs nothing: it goes on at step {last.saved_step or 0}")
    if cause in policy.never:
        return Decision(again=False, why=f"{cause}: {_ADVICE.get(cause, 'the recipe says so (retry.never)')}")
    if cause == "timeout" and last.saved_step is not None and not _advanced(last):
        why = "timeout: the time was too short to save anything new; ask for more hours, or save more often"
        return Decision(again=False, why=why)
    alike = _at_the_same_step(attempts)
    where = f"at step {last.saved_step}" if last.saved_step is not None else "without a checkpoint"
    if len(alike) >= policy.attempts:
        causes = ", ".join(dict.fromkeys(attempt.cause or "unknown" for attempt in alike))
        count = "one attempt" if len(alike) == 1 else f"{len(alike)} attempts"
        why = f"{count} ended {where} ({causes}); retry.attempts is {policy.attempts}"
        return Decision(again=False, why=why)
    exclude = _to_leave_out(alike, cause, policy) if elsewhere else ()
    without = f", without {', '.join(exclude)}" if exclude else ""
    return Decision(
        again=True,
        why=f"{cause}: attempt {len(alike) + 1} of {policy.attempts} {where}{without}",
        place="other" if exclude else "same",
        exclude=exclude,
        delay_s=_delay_s(cause, len(alike), policy),
    )


def tell_verdict(folder: Path, attempt: Attempt, decision: Decision) -> None:
    """Writes verdict and decision into a stage's journal. No process of the stage may be running."""
    journal = Journal(folder)
    journal.append(
        "verdict", attempt=attempt.number, state=attempt.state, cause=attempt.cause, detail=attempt.detail,
        evidence=list(attempt.evidence), rank=attempt.rank, node=attempt.node, step=attempt.saved_step,
        decision=str(decision),
    )  # fmt: skip
    journal.close()


def _delay_s(cause: Cause, alike: int, policy: RetryPolicy) -> float:
    first = policy.disk_delay_s if cause == "disk" else 0.0 if alike == 1 else policy.delay_s / 2
    return min(policy.most_delay_s, first * 2.0 ** (alike - 1))


def _advanced(attempt: Attempt) -> bool:
    """Tells whether an attempt saved something new."""
    return (attempt.saved_step or 0) > (attempt.from_step or 0)


def _at_the_same_step(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Returns the attempts that count against the last one: those that ended where it did, at the same saved step."""
    alike: list[Attempt] = []
    for attempt in reversed(attempts):
        if attempt.saved_step != attempts[-1].saved_step:
            break
        if attempt.cause not in _FREE:
            alike.insert(0, attempt)
    return alike


def _to_leave_out(alike: Sequence[Attempt], cause: Cause, policy: RetryPolicy) -> tuple[str, ...]:
    node = alike[-1].node
    if node is None:
        return ()
    before = alike[-2] if len(alike) > 1 else None
    repeats = cause in _SUSPECT and before is not None and (before.cause, before.node) == (cause, node)
    return (node,) if cause in policy.exclude or repeats else ()
