"""Hands a plan over and, if asked, stays with it until the end."""

import json
import shlex
import sys
from pathlib import Path

from orchestrator.display import ending_lines, make_console, plan_table
from orchestrator.follow import follow, wait
from orchestrator.launcher import Launcher, launch
from orchestrator.plan import Plan
from orchestrator.records import record
from orchestrator.status import status

INTERRUPTED_EXIT = 130


@record
class Manner:
    """How the one who launches wants to hear of it."""

    follow: bool
    as_json: bool
    require_clean: bool


def start(plan: Plan, launcher: Launcher, manner: Manner) -> int:
    """Launches a plan and returns the exit code: of the run if it is followed, else 0."""
    console, run = make_console(), plan.directory
    if not manner.as_json:
        console.print(plan_table(plan))
    launch(plan, launcher, code_root(), command=command_line(), require_clean=manner.require_clean)
    if not manner.follow:
        lines = [json.dumps(status(run), indent=1)] if manner.as_json else [f"launched: {run}", *_hints(run)]
        console.out("\n".join(lines), highlight=False)
        return 0
    try:
        shown = wait(run) if manner.as_json else follow(run, console)
    except KeyboardInterrupt:
        make_console(stderr=True).out("\nthe run goes on\n" + "\n".join(_hints(run)), highlight=False)
        return INTERRUPTED_EXIT
    lines = [json.dumps(shown, indent=1)] if manner.as_json else list(ending_lines(shown))
    console.out("\n".join(lines), highlight=False)
    return 0 if shown["state"] == "done" else 1


def code_root() -> Path:
    """Returns the folder that holds the rooms: what a launch takes a copy of."""
    return Path(__file__).resolve().parents[1]


def command_line() -> str:
    """Returns what was typed, for whoever is told that the run is busy."""
    return shlex.join(["orch", *sys.argv[1:]])


def _hints(run: Path) -> list[str]:
    name = shlex.quote(str(run))
    return [f"follow:   orch status {name} --watch", f"cancel:   orch cancel {name}"]
