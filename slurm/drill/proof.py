"""Compares a disturbed run with an undisturbed one: what differs that must not, in sentences."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from slurm.drill.trace import Execution, Step, Trace

_SHOWN = 3


def differences(calm: Trace, disturbed: Trace) -> list[str]:
    """Lists how the results differ: losses, samples, weights. Empty = equal to the last bit."""
    return [
        *_steps_differ(calm.final(), disturbed.final()),
        *_results_differ(calm, disturbed),
        *overlaps(disturbed),
    ]


def damage_differences(calm: Trace, disturbed: Trace) -> list[str]:
    """Lists samples that are not those of the undisturbed run although nobody has named them as lost."""
    named = {sample["key"] for sample in disturbed.damage}
    found = [] if named else ["no sample was named as lost"]
    for number, step in sorted(disturbed.final().items()):
        usual = calm.final()[number].keys
        silent = [was for was, now in zip(usual, step.keys, strict=True) if was != now and was not in named]
        kept = [key for key in step.keys if key in named]
        found += [f"step {number}: {', '.join(silent[:_SHOWN])} replaced, but not named as lost"] if silent else []
        found += [f"step {number}: {', '.join(kept[:_SHOWN])} named as lost, but used"] if kept else []
    missing = sorted(set(calm.final()) - set(disturbed.final()))
    return [*found, *([f"steps {missing} are missing"] if missing else []), *overlaps(disturbed)]


def overlaps(trace: Trace) -> list[str]:
    """Lists attempts that ran at the same time, and steps that an attempt did after its successor had begun."""
    found = []
    for before, after in itertools.pairwise(trace.attempts):
        if before.ended is None or before.ended > after.started:
            found.append(f"attempts {before.number} and {after.number} overlap")
    order = [step.attempt for step in trace.steps]
    if order != sorted(order):
        found.append("an earlier attempt went on after a later one had begun")
    return found


def duplicates(executions: Sequence[Execution]) -> list[str]:
    """Lists names that two jobs share, and stages of which two jobs ran at the same time."""
    ids: dict[str, set[str]] = {}
    spans: dict[str, list[tuple[datetime, datetime, str]]] = {}
    for one in executions:
        ids.setdefault(one.name, set()).add(one.job_id)
        start, end = _moment(one.start), _moment(one.end)
        if start is not None and end is not None and end > start:
            spans.setdefault(one.name.rpartition("-")[0], []).append((start, end, one.job_id))
    found = [
        f"{name}: submitted {len(jobs)} times ({', '.join(sorted(jobs))})"
        for name, jobs in ids.items()
        if jobs - {min(jobs)}
    ]
    for stage, ran in spans.items():
        for (_, end, first), (start, _, second) in itertools.pairwise(sorted(ran)):
            if start < end:
                found.append(f"{stage}: jobs {first} and {second} ran at the same time")
    return found


def _steps_differ(calm: Mapping[int, Step], disturbed: Mapping[int, Step]) -> Iterator[str]:
    if set(calm) != set(disturbed):
        missing, extra = sorted(set(calm) - set(disturbed)), sorted(set(disturbed) - set(calm))
        yield f"steps differ: {missing} missing, {extra} too many"
    both = sorted(set(calm) & set(disturbed))
    samples = [number for number in both if calm[number].keys != disturbed[number].keys]
    if samples:
        yield f"other samples in steps {samples[:_SHOWN]} ({len(samples)} in all)"
    losses = [number for number in both if calm[number].loss != disturbed[number].loss]
    if losses:
        first = losses[0]
        yield (
            f"another loss in {len(losses)} of {len(both)} steps, first in step {first}: "
            f"{disturbed[first].loss!r} instead of {calm[first].loss!r}"
        )


def _results_differ(calm: Trace, disturbed: Trace) -> Iterator[str]:
    if disturbed.result is None:
        yield "the stage after the training has left no result"
    elif disturbed.result != calm.result:
        yield "the final weights differ"


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # Unknown, None
        return None
