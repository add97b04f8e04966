"""Puts estimates of memory and cost into a few words for people."""

from collections.abc import Iterator, Mapping

from rich.text import Text

from orchestrator.training.memory.estimate import Estimate
from orchestrator.training.memory.zero import GB

COSTS = ("GB a rank", "GPU-hours", "goodput")  # columns of the table of a plan
UNKNOWN = "-"


def costs_in_words(estimate: Estimate | None) -> list[Text | str]:
    """Reads `61.3`, `1 480`, `97.2 %`; `-` where nobody knows. Memory that does not fit is red and says so."""
    if estimate is None:
        return [UNKNOWN] * len(COSTS)
    size = f"{estimate.memory.total / GB:.3g}"
    memory = Text(f"{size}: too much", style="red") if estimate.fits is False else Text(size)
    goodput = UNKNOWN if estimate.goodput is None else f"{estimate.goodput:.1%}"
    return [memory, _hours(estimate.gpu_hours), goodput]


def advice_lines(estimates: Mapping[str, Estimate]) -> Iterator[str]:
    """Says of every stage that does not fit what would make it fit."""
    for name, estimate in estimates.items():
        if estimate.advice is None:
            continue
        advice, needs = estimate.advice, f"{name} needs {estimate.memory.total / GB:.3g} GB a GPU, which there is not"
        size = f"{advice.memory.total / GB:.3g} GB"
        if advice.changes:
            changes = " ".join(f"stages.{name}.{key}={_yaml(value)}" for key, value in advice.changes.items())
            yield f"{needs}; {size} with {changes} (steps about {advice.slower:.2f} times as long)"
        else:
            yield f"{needs}; the least is {size}, with the smallest micro-batch: more GPUs share the weights"


def _hours(hours: float | None) -> str:
    if hours is None:
        return UNKNOWN
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
