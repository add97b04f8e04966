"""`orch status`: what is shown of a run, once or for as long as somebody watches, and in which form."""

import json
import signal
from pathlib import Path
from typing import Any

from orchestrator.costs import spending_in_words, spending_table
from orchestrator.display import ending_lines, make_console, standing_lines, status_table
from orchestrator.errors import InputError
from orchestrator.goodput import Spending, spending_or_none
from orchestrator.launcher import Place
from orchestrator.records import record
from orchestrator.start import insist_on_interrupts, interrupted
from orchestrator.status import Observer


@record
class Wish:
    """What somebody wants to see."""

    watch: bool = False
    goodput: bool = False  # where the hours of each stage went
    as_json: bool = False


def show(directory: Path, place: Place, wish: Wish) -> int:
    """Shows a run and returns the exit code."""
    if wish.watch and wish.as_json:
        raise InputError("--watch shows a view for people, --json prints one document: allowed is one of them")
    console = make_console()
    shown: dict[str, Any] | None = None
    if wish.watch:
        from orchestrator.watch import watch

        insist_on_interrupts()
        try:
            shown = watch(directory, place, console)
        except KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, 0)
            return interrupted(directory, "the run goes on")
    shown = shown or Observer(directory, place).look()
    spent = spending_or_none(directory)
    if wish.as_json:
        console.out(json.dumps(_with_goodput(shown, spent), indent=1), highlight=False)
        return 0
    console.print(f"{shown['run']}: {shown['state']}", markup=False)
    console.print(status_table(shown))
    if spent is not None and wish.goodput:
        console.print()
        console.print(spending_table(spent))
    elif spent is not None and (words := spending_in_words(spent)):
        console.print(words, markup=False, soft_wrap=True)
    for line in (*standing_lines(shown), *ending_lines(shown)):
        console.print(line, markup=False, soft_wrap=True)
    return 0


def _with_goodput(shown: dict[str, Any], spent: Spending | None) -> dict[str, Any]:
    """Joins the status with where the hours went: of the run, of each stage and each attempt."""
    if spent is None:
        return shown
    stages = {stage.name: stage for stage in spent.parts}
    for stage in shown["stages"]:
        found = stages.get(stage["name"])
        stage["goodput"] = None if found is None else found.plain()
        attempts = {} if found is None else {part.name: part.plain() for part in found.parts}
        for attempt in stage["attempts"]:
            attempt["goodput"] = attempts.get(str(attempt["number"]))
    return {**shown, "goodput": {**shown["goodput"], **spent.plain()}}
