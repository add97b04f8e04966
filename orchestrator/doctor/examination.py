"""Looks at everything that runs depend on, and tells it line by line or as one document."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.text import Text

from orchestrator.display import make_console
from orchestrator.doctor.findings import Finding, unfit
from orchestrator.doctor.packages import git_findings, package_findings
from orchestrator.doctor.storage import folder_findings
from orchestrator.doctor.tracking import tracking_findings
from orchestrator.errors import SurroundingsError
from orchestrator.launcher import Launcher

COLORS = {"ok": "green", "warning": "yellow", "fault": "red"}
INDENT = " " * 9


def examine(place: Launcher, root: Path, runs: Path) -> Iterator[Finding]:
    """Looks at one thing after the other, on this machine and at the place. Starts nothing, leaves nothing behind.

    `root` is where the code is; `runs` the folder of runs, which need not exist yet.
    """
    looks: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
        ("packages", partial(package_findings, root, stages_run_here=place.name == "local")),
        ("git", partial(git_findings, root)),
        ("run folder", partial(folder_findings, runs)),
        ("MLflow", tracking_findings),
        (place.name, partial(place.examine, runs)),
    )
    for about, look in looks:
        try:
            yield from look()
        except Exception as error:  # noqa: BLE001 - what breaks a look is something to be told, and the next is taken
            message = f"could not be looked at: {type(error).__name__}: {error}"
            yield unfit(about, message, "see what this machine says of it")


def tell(place: Launcher, root: Path, runs: Path, *, as_json: bool) -> int:
    """Prints what is found and returns the exit code: 0 if runs can work, 3 if something is in their way."""
    console, found = make_console(), list[Finding]()
    for finding in examine(place, root, runs):
        found.append(finding)
        if not as_json:  # at once: a file server that hangs shows by what is not said
            head = Text(f"{finding.level:<{len(INDENT)}}", style=COLORS[finding.level])
            console.print(head + Text(f"{finding.about}: {finding.message}"), soft_wrap=True)
            if finding.remedy:
                console.print(Text(f"{INDENT}do: {finding.remedy}"), soft_wrap=True)
    levels = [finding.level for finding in found]
    if as_json:
        document = {"on": place.name, "fit": "fault" not in levels, "findings": [asdict(finding) for finding in found]}
        console.out(json.dumps(document, indent=1), highlight=False)
    else:
        told = ", ".join(_counted(levels.count(level), level) for level in ("fault", "warning"))
        console.out(f"{len(found)} things were looked at: {told}", highlight=False)
    return SurroundingsError.exit_code if "fault" in levels else 0


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)
