"""Puts goodput and cost into a line and a table for people."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from orchestrator.goodput import CLASSES, Spending

NAMES = {"startup": "start-up", "redone": "re-done", "data_wait": "data wait"}


def spending_in_words(spending: Spending) -> str:
    """Reads `1.2 GPU-hours: 91% productive, 5% start-up, 4% checkpoint; 0.3 in the queue`."""
    held = spending.held_hours
    if held <= 0:
        return ""
    shares = sorted(((spending.hours[name] / held, name) for name in CLASSES if name != "queue"), reverse=True)
    told = ", ".join(f"{share:.0%} {NAMES.get(name, name)}" for share, name in shares if share >= 0.005)
    queue = spending.hours["queue"]
    return f"{_hours(held)} {spending.unit}-hours: {told}" + (f"; {_hours(queue)} in the queue" if queue > 0 else "")


def spending_table(spending: Spending) -> Table:
    """Shows for each stage, and for each attempt where there were several, in which class its hours went."""
    used = [name for name in CLASSES if any(part.hours[name] > 0 for part in (spending, *spending.parts))]
    table = Table("stage", "hours of", "held", "useful", box=None, pad_edge=False, header_style="bold")
    for name in used:
        table.add_column(NAMES.get(name, name), justify="right")
    for label, part in _rows(spending):
        useful = "" if part.useful is None else f"{part.useful:.0%}"
        cells = (_hours(part.hours[name]) if part.hours[name] else "" for name in used)
        table.add_row(Text(label), part.unit, _hours(part.held_hours), useful, *cells)
    return table


def _rows(spending: Spending) -> Iterator[tuple[str, Spending]]:
    for stage in spending.parts:
        yield stage.name, stage
        if len(stage.parts) > 1:
            yield from ((f"  attempt {attempt.name}", attempt) for attempt in stage.parts)
    yield "all", spending


def _hours(hours: float) -> str:
    return f"{hours:.3g}" if hours < 100 else f"{hours:,.0f}"
