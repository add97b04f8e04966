"""`orch stages`: what a recipe can chain, and every config key of it."""

import json
from typing import Annotated

import typer

from orchestrator import options, session

Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="One stage, with every config key.")]


def show_stages(name: Name = None, *, as_json: options.Json = False) -> None:
    """Shows what a recipe can chain, and every config key of it.

    Example: orch stages evaluate
    """
    from orchestrator.manual import describe_stages, manual_lines

    described = describe_stages(session.catalog(), name)
    if as_json:
        typer.echo(json.dumps(described if name is None else described[0], indent=1))
        return
    for line in manual_lines(described, in_full=name is not None):
        typer.echo(line)
