"""Arguments and options that several commands of `orch` share."""

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, as in stages.gcg.config.train.steps=10.")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or the name of one under runs/.")]
StageName = Annotated[str, typer.Argument(metavar="STAGE", help="A stage of the run's recipe.")]
On = Annotated[str, typer.Option("--on", metavar="local|CLUSTER", help="Where it runs.")]
Json = Annotated[bool, typer.Option("--json", help="Prints JSON for programs.")]
Follow = Annotated[bool, typer.Option("--follow/--detach", help="Watches until the end, or returns at once.")]
