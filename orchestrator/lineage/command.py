"""`orch lineage`: what an artifact is made of, and what was made from it."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from orchestrator.display import make_console
    from orchestrator.lineage.lines import lineage_lines
    from orchestrator.lineage.picture import lineage_picture
    from orchestrator.lineage.wanted import find_lineage

    found = find_lineage(of, runs or [], _ways(up=up, down=down, both=both))
    if svg is not None:
        _write(svg, _kept_secret(lineage_picture(found)))
    if as_json:
        typer.echo(json.dumps(_harmless(found.document()), indent=1))
        return
    console = make_console()
    for line in lineage_lines(found, console.width):
        console.print(line.branches, end="", markup=False, soft_wrap=True)
        console.print(_kept_secret(line.words), style=line.style, markup=False, soft_wrap=True)
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
    """Writes the picture by rename."""
    from orchestrator.errors import SurroundingsError

    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise SurroundingsError(f"--svg: {path} cannot be written: {error.strerror or error}") from None


def _harmless(value: Any) -> Any:
    """Takes secrets out of every text of a document, ids and the edges between them alike."""
    from orchestrator.redaction import redacted

    if isinstance(value, dict):
        return {str(_harmless(name)): _harmless(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_harmless(inner) for inner in value]
    return _kept_secret(redacted(value)) if isinstance(value, str) else value


def _kept_secret(text: str) -> str:
    """Hides the secrets of this very environment, whatever they look like."""
    from orchestrator.redaction import secrets_of, without

    return without(text, secrets_of(os.environ))
