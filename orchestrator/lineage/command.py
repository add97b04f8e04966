"""`orch lineage`: what an artifact is made of, and what was made from it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import options

if TYPE_CHECKING:
    from orchestrator.lineage.graph import Way

Words = Annotated[
    str, typer.Argument(metavar="PATH|RUN|RUN:STAGE.OUTPUT", help="An artifact, a stage's folder, or a whole run.")
]
Up = Annotated[bool, typer.Option("--up", help="What it is made of; so it is by default.")]
Down = Annotated[bool, typer.Option("--down", help="What was made from it.")]
Both = Annotated[bool, typer.Option("--both", help="Both.")]
Runs = Annotated[
    list[Path] | None, typer.Option("--runs", metavar="DIR", help="A folder with runs; repeatable. Default: runs/.")
]
Picture = Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Draws it, too.")]


def lineage(
    of: Words,
    *,
    up: Up = False,
    down: Down = False,
    both: Both = False,
    runs: Runs = None,
    as_json: options.Json = False,
    svg: Picture = None,
) -> None:
    """Shows what an artifact is made of, or what was made from it, across runs and recipes, from the files alone.

    Example: orch lineage quickstart:export.model --both --svg lineage.svg
    """
    from rich.text import Text

    from orchestrator.display import make_console
    from orchestrator.lineage.lines import lineage_lines
    from orchestrator.lineage.picture import lineage_picture
    from orchestrator.lineage.wanted import find_lineage
    from orchestrator.redaction import Screen
    from orchestrator.report.text import screened

    screen = Screen()
    found = find_lineage(of, runs or [], _ways(up=up, down=down, both=both))
    if svg is not None:
        _write(svg, screened(lineage_picture(found)))
    if as_json:
        typer.echo(json.dumps(screen.plain(found.document()), indent=1))
        return
    console, text = make_console(), Text()  # all at once: line by line a thousand stages would take seconds
    for line in lineage_lines(found, console.width):
        text.append(line.branches).append(f"{screen.text(line.words)}\n", style=line.style)
    console.print(text, end="", soft_wrap=True)
    if svg is not None:
        console.print(f"drawn: {svg}", markup=False, soft_wrap=True)


def _ways(*, up: bool, down: bool, both: bool) -> "tuple[Way, ...]":
    from orchestrator.errors import InputError

    if up + down + both > 1:
        raise InputError("--up, --down and --both say the same thing differently: allowed is one of them")
    if both:
        return "up", "down"
    return ("down",) if down else ("up",)


def _write(path: Path, text: str) -> None:
    """Writes the picture, or says what is in the way."""
    from orchestrator.artifacts import write_text
    from orchestrator.errors import SurroundingsError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise SurroundingsError(f"--svg: {path} cannot be written: {error.strerror or error}") from None
