"""What `orch drill` prints: a line when a scenario ends, a table at the end, or JSON."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from slurm.drill.rehearsal import Outcome
from slurm.drill.scenarios import SCENARIOS


def outcome_line(outcome: Outcome) -> str:
    """Says in a line how a scenario ended, and in more lines what was wrong."""
    head = f"{outcome.scenario}: {'passed' if outcome.passed else 'FAILED'} after {outcome.seconds:.0f} s"
    return "\n".join([head, *(f"  {problem}" for problem in outcome.problems)])


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """Shows all scenarios: what was done, which cause was named, what it cost, the verdict."""
    table = Table("scenario", "what was done to it", "cause named", box=None, pad_edge=False, header_style="bold")
    table.add_column("steps done again", justify="right")
    table.add_column("running again after", justify="right")
    table.add_column("verdict")
    for one in outcomes:
        lost = "" if one.lost_steps is None else str(one.lost_steps)
        back = "" if one.back_s is None else f"{one.back_s:.1f} s"
        verdict = "[green]nothing lost[/green]" if one.passed else "[red]FAILED[/red]"
        table.add_row(one.scenario, one.what, ", ".join(dict.fromkeys(one.causes)) or "none", lost, back, verdict)
    return table


def scenario_table() -> Table:
    """Lists the scenarios there are."""
    table = Table(
        "scenario", "what happens", "cause to be named", "quick", box=None, pad_edge=False, header_style="bold"
    )
    for one in SCENARIOS:
        table.add_row(one.name, one.what, ", ".join(sorted(one.causes)) or "none", "yes" if one.quick else "")
    return table


def scenario_documents() -> list[dict[str, Any]]:
    """Returns the scenarios there are, for JSON."""
    return [{"name": one.name, "what": one.what, "causes": sorted(one.causes), "quick": one.quick} for one in SCENARIOS]


def document(outcomes: Sequence[Outcome], folder: str | None) -> dict[str, Any]:
    """Returns the JSON of a drill; `folder` is what was kept."""
    return {"passed": all(one.passed for one in outcomes), "folder": folder, "scenarios": [_plain(o) for o in outcomes]}


def _plain(one: Outcome) -> dict[str, Any]:
    return {
        "scenario": one.scenario, "what": one.what, "passed": one.passed, "problems": list(one.problems),
        "causes": list(one.causes), "evidence": list(one.evidence), "lost_steps": one.lost_steps,
        "back_s": one.back_s, "seconds": one.seconds,
    }  # fmt: skip
