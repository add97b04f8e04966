"""Hands a plan over and, if asked, stays with it until the end."""

import json
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console

from orchestrator.display import ending_lines, make_console, plan_table, status_table
from orchestrator.follow import wait, wait_for_mlflow
from orchestrator.launcher import Job, Launcher, Place, checked, launch
from orchestrator.plan import Plan
from orchestrator.records import record
from orchestrator.run import Run
from orchestrator.status import Observer

INTERRUPTED_EXIT = 130
MLFLOW_PATIENCE_S = 15.0  # of the one who follows; the forwarder itself has more


@record
class Manner:
    """How the one who launches wants to hear of it."""

    follow: bool
    as_json: bool
    require_clean: bool


def start(make: Callable[[], Plan], launcher: Launcher, before: Place, manner: Manner) -> int:
    """Launches a plan and returns the exit code: of the run if it is followed, else 0."""
    plan = checked(make(), launcher)
    console, run = make_console(), plan.directory
    if not manner.as_json:
        console.print(plan_table(plan))
    try:
        job = launch(
            Run(run), make, launcher, code_root(), before=before, command=command_line(),
            require_clean=manner.require_clean,
        )  # fmt: skip
    except KeyboardInterrupt:
        return interrupted(run, "interrupted; what was handed over goes on")
    observer = Observer(run, lambda _: launcher)
    if not manner.follow:
        told_now = [_launched(run, launcher, job), *_hints(run)]
        lines = [json.dumps(observer.look(), indent=1)] if manner.as_json else told_now
        console.out("\n".join(lines), highlight=False)
        return 0
    insist_on_interrupts()
    try:
        shown = wait(observer) if manner.as_json else _followed(observer, launcher, console)
        if shown is None:
            return interrupted(run, "the run goes on")
        tells = shown["tracking_uri"] is not None and any(stage.action != "reuse" for stage in plan.stages)
        told = not tells or wait_for_mlflow(run, MLFLOW_PATIENCE_S)
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
        return interrupted(run, "the run goes on")
    lines = [json.dumps(shown, indent=1)] if manner.as_json else list(ending_lines(shown))
    if not told and not manner.as_json:
        lines.append(f"note: MLflow is slow or away; it is told in the background, or by: orch sync {_quoted(run)}")
    console.out("\n".join(lines), highlight=False)
    return 0 if shown["state"] == "done" else 1


def _followed(observer: Observer, launcher: Launcher, console: Console) -> dict[str, Any] | None:
    """Shows the run until it is over, and leaves its last table on a terminal; None if somebody left the view."""
    from orchestrator.watch import drawable, in_lines, watch

    if not drawable(console):
        return in_lines(observer, console)
    shown = watch(observer.directory, lambda _: launcher, console)
    if shown is not None:
        console.print(status_table(shown))
    return shown


def interrupted(run: Path, words: str) -> int:
    """Says to whoever pressed Ctrl-C what goes on and how to follow it; returns the exit code."""
    make_console(stderr=True).out(f"\n{words}\n" + "\n".join(_hints(run)), highlight=False)
    return INTERRUPTED_EXIT


def _launched(run: Path, launcher: Launcher, job: Job) -> str:
    where = "" if launcher.name == "local" else f" on {launcher.name}" + (f", first job {job.id}" if job.id else "")
    return f"launched: {run}{where}"


def insist_on_interrupts() -> None:
    """Makes Ctrl-C heard: an interrupt that comes while Python runs a destructor is forgotten, so it is repeated."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        del number, frame
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    signal.signal(signal.SIGINT, interrupt)


def code_root() -> Path:
    """Returns the folder that holds the rooms: what a launch takes a copy of."""
    return Path(__file__).resolve().parents[1]


def command_line() -> str:
    """Returns what was typed, for whoever is told that the run is busy."""
    return shlex.join(["orch", *sys.argv[1:]])


def _hints(run: Path) -> list[str]:
    return [f"follow:   orch status {_quoted(run)} --watch", f"cancel:   orch cancel {_quoted(run)}"]


def _quoted(run: Path) -> str:
    return shlex.quote(str(run))
