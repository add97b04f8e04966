"""Where the time of attempts went, as far as journal and state files say; what they do not say is called so."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

from orchestrator.records import record

Use = Literal["useful", "redone", "start", "queue", "checkpoint", "data", "end", "unknown"]

USES: tuple[Use, ...] = get_args(Use)
MEANINGS: Mapping[Use, tuple[str, str]] = {
    "useful": ("useful", "steps that count, and the whole work of stages that count no steps"),
    "redone": ("re-done", "steps that a later attempt computed again, or that no checkpoint holds"),
    "start": ("start-up", "from the start of an attempt to the end of its first step"),
    "queue": ("queue", "from when a stage could have begun, or its last attempt ended, to the start of an attempt"),
    "checkpoint": ("checkpoint", "saving, as long as the steps waited for it"),
    "data": ("data wait", "steps that count, waiting for their data"),
    "end": ("after the last step", "the last save and the outputs, or as long as a failure took to end the attempt"),
    "unknown": ("not recorded", "attempts that left no word of what they did"),
}
Seconds = Mapping[Use, float]


@record
class _Step:
    """A step that an attempt has computed."""

    number: int
    ended: float  # seconds since 1970
    wait_s: float  # for its data
    save_s: float  # of the checkpoint that was written since the step before


def spent_of(
    attempts: Sequence[Mapping[str, Any]], events: Iterable[Mapping[str, Any]], *, ready: float | None, now: float
) -> list[Seconds]:
    """Splits the time of each attempt of a stage (as in `orch status --json`) by use.

    `ready` is when everything the stage reads was there, in seconds since 1970; None if nobody knows.
    """
    steps = _steps_by_attempt(attempts, events)
    found: list[Seconds] = []
    for index, attempt in enumerate(attempts):
        following = attempts[index + 1] if index + 1 < len(attempts) else None
        spent = _inside(attempt, steps.get(attempt["number"], []), _kept_to(attempt, following), now)
        before = attempts[index - 1] if index else None
        found.append({**spent, "queue": _queued_s(attempt, before, ready)})
    return found


def total(parts: Iterable[Seconds]) -> dict[Use, float]:
    """Adds up."""
    sums: dict[Use, float] = dict.fromkeys(USES, 0.0)
    for part in parts:
        for use, seconds in part.items():
            sums[use] += seconds
    return sums


def _inside(attempt: Mapping[str, Any], steps: Sequence[_Step], kept_to: float, now: float) -> dict[Use, float]:
    """Splits the time between start and end of an attempt."""
    started, ended = float(attempt["started"]), float(attempt["ended"] or now)
    spent: dict[Use, float] = dict.fromkeys(USES, 0.0)
    if not steps:
        spent[_use_without_steps(attempt)] = max(0.0, ended - started)
        return spent
    spent["start"] = max(0.0, steps[0].ended - started)
    for before, step in pairwise(steps):
        took_s = max(0.0, step.ended - before.ended)
        save_s = min(step.save_s, took_s)
        spent["checkpoint"] += save_s
        if step.number > kept_to:
            spent["redone"] += took_s - save_s
            continue
        wait_s = min(step.wait_s, took_s - save_s)
        spent["data"] += wait_s
        spent["useful"] += took_s - save_s - wait_s
    spent["end"] = max(0.0, ended - max(started, steps[-1].ended))
    return spent


def _use_without_steps(attempt: Mapping[str, Any]) -> Use:
    """Names the use of an attempt of which no step is known."""
    if attempt["from_step"] is not None:  # it counts steps, and made none
        return "unknown" if attempt["state"] == "done" else "start"
    return "useful" if attempt["state"] in {"done", "running"} else "unknown"


def _kept_to(attempt: Mapping[str, Any], following: Mapping[str, Any] | None) -> float:
    """Returns the last step of an attempt that was not lost."""
    if following is not None and following["from_step"] is not None:
        return float(following["from_step"])
    if attempt["state"] in {"failed", "cancelled"} and attempt.get("saved_step") is not None:
        return float(attempt["saved_step"])
    return float("inf")


def _queued_s(attempt: Mapping[str, Any], before: Mapping[str, Any] | None, ready: float | None) -> float:
    """Returns how long an attempt waited to begin; none where a person decided when to go on."""
    if before is None:
        return 0.0 if ready is None else max(0.0, attempt["started"] - ready)
    again = str(before.get("decision", "")).startswith("again")
    return max(0.0, attempt["started"] - before["ended"]) if again and before["ended"] else 0.0


def _steps_by_attempt(
    attempts: Sequence[Mapping[str, Any]], events: Iterable[Mapping[str, Any]]
) -> dict[int, list[_Step]]:
    found: dict[int, list[_Step]] = {}
    save_s = 0.0
    for number, event in _with_attempt(attempts, events):
        if event.get("event") == "saved":
            save_s += _seconds(event.get("save_s"))
        elif event.get("event") == "attempt":
            save_s = 0.0
        elif event.get("event") == "loss":
            step = _Step(
                number=int(event["step"]), ended=_seconds(event.get("time")), wait_s=_seconds(event.get("data_wait_s")),
                save_s=save_s,
            )  # fmt: skip
            found.setdefault(number, []).append(step)
            save_s = 0.0
    return found


def _with_attempt(
    attempts: Sequence[Mapping[str, Any]], events: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields each event with the number of the attempt that wrote it: journals name it where an attempt begins."""
    number = int(attempts[0]["number"]) if attempts else 1
    for event in events:
        if event.get("event") == "attempt":
            number = int(event.get("number", number))
        yield number, event


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else 0.0
