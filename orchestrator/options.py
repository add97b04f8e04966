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
OnAgain = Annotated[
    str | None, typer.Option("--on", metavar="local|CLUSTER", help="Where it runs; by default where it ran before.")
]
Json = Annotated[bool, typer.Option("--json", help="Prints JSON for programs.")]
Follow = Annotated[bool, typer.Option("--follow/--detach", help="Watches until the end, or returns at once.")]
NewName = Annotated[str | None, typer.Option("--name", help="The run's name; the recipe's by default.")]
RequireClean = Annotated[bool, typer.Option("--require-clean", help="Refuses uncommitted code.")]
ExportFolder = Annotated[Path, typer.Argument(metavar="EXPORT", help="A folder that the stage `export` wrote.")]
ImageFile = Annotated[Path, typer.Argument(metavar="IMAGE", help="A JPEG or PNG.")]
Prompts = Annotated[list[str] | None, typer.Option("--prompt", metavar="TEXT", help="A question; repeatable.")]
Boxes = Annotated[list[str] | None, typer.Option("--box", metavar="x0,y0,x1,y1", help="In pixels; repeatable.")]
Expressions = Annotated[list[str] | None, typer.Option("--refer", metavar="TEXT", help="What to point at; repeatable.")]
Texts = Annotated[list[str] | None, typer.Option("--text", metavar="TEXT", help="What it may show; repeatable.")]
Masks = Annotated[
    list[Path] | None,
    typer.Option("--mask", metavar="FILE", help="A PNG (black: not meant) or COCO run lengths; repeatable."),
]
Dense = Annotated[bool, typer.Option("--dense", help="Finds and describes everything.")]
Picture = Annotated[Path | None, typer.Option("--output", metavar="PNG", help="Draws the answer.")]
Page = Annotated[Path | None, typer.Option("--output", metavar="FILE", help="In the run's folder by default.")]
Against = Annotated[str | None, typer.Option("--against", metavar="RUN", help="Another run, to compare this one with.")]
FromStage = Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Redoes it and its followers.")]
AttemptNumber = Annotated[int | None, typer.Option("--attempt", metavar="N", help="The last one by default.")]
RankNumber = Annotated[int | None, typer.Option("--rank", metavar="N", help="All ranks by default.")]
