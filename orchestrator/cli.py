"""The commands of `orch`. The one file that joins orchestrator, stages and slurm.

Everything heavy is imported inside the commands, so that `--help` answers at once.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import options, session
from orchestrator.complaints import Commands, exit_code
from orchestrator.lineage.command import lineage
from orchestrator.manual_command import show_stages
from slurm.cluster_commands import app as cluster_commands
from slurm.drill_commands import drill
from slurm.nodes_command import nodes
from stages.data_commands import app as data_commands
from stages.demo.command import demo

if TYPE_CHECKING:
    from orchestrator.launcher import Launcher

app = typer.Typer(
    name="orch",
    cls=Commands,
    help="Runs recipes of training stages: planned, resumed, tracked. Start with: orch plan recipes/quickstart.yaml",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_commands)
app.add_typer(cluster_commands)
app.command()(drill)
app.command()(nodes)
app.command()(lineage)
app.command()(demo)
app.command("stages")(show_stages)


def main() -> None:
    """Runs the command line and ends the process."""
    sys.exit(exit_code(partial(app, standalone_mode=False), as_json="--json" in sys.argv[1:]))


@app.command()
def plan(
    recipe: options.RecipeFile,
    overrides: options.Overrides = None,
    on: options.On = "",
    *,
    as_json: options.Json = False,
) -> None:
    """Shows what a launch would do about each stage, and why. Starts nothing.

    Example: orch plan recipes/quickstart.yaml stages.gcg.config.train.steps=50
    """
    from orchestrator.display import make_console, plan_footer, plan_table
    from orchestrator.errors import RecipeError
    from orchestrator.outlook import look_ahead
    from orchestrator.training.memory.telling import advice_lines

    made, place = session.make_plan(recipe, overrides or []), session.launcher(on, _cluster) if on else None
    outlook = look_ahead(made, place)
    for note in outlook.notes:
        print(note, file=sys.stderr)
    if as_json and not outlook.faults:
        print(json.dumps(outlook.document(), indent=1))
        return
    if not as_json:
        console = make_console()
        console.print(plan_table(made, outlook.forecasts, outlook.estimates))
        for line in advice_lines(outlook.estimates):
            console.print(line, markup=False, soft_wrap=True)
        console.print(plan_footer(made), style="dim", markup=False)
    if outlook.faults:
        raise RecipeError(outlook.faults)


@app.command()
def launch(
    recipe: options.RecipeFile,
    overrides: options.Overrides = None,
    on: options.On = "local",
    name: options.NewName = None,
    *,
    follow: options.Follow = True,
    require_clean: options.RequireClean = False,
    as_json: options.Json = False,
) -> None:
    """Runs what is not done yet.

    Example: orch launch recipes/quickstart.yaml --detach
    """
    from orchestrator.start import Manner, start

    launcher = session.launcher(on, _cluster)
    changes = [*(overrides or []), *([f"name={name}"] if name is not None else [])]
    make = partial(session.make_plan, recipe, changes)
    manner = Manner(follow=follow, as_json=as_json, require_clean=require_clean)
    raise typer.Exit(start(make, launcher, _launcher_of, manner))


@app.command()
def resume(
    run: options.RunName,
    overrides: options.Overrides = None,
    from_stage: options.FromStage = None,
    on: options.OnAgain = None,
    *,
    follow: options.Follow = True,
    as_json: options.Json = False,
) -> None:
    """Launches again what is not done, with the recipe the run keeps.

    Example: orch resume quickstart --from gcg
    """
    from orchestrator.launcher import set_aside
    from orchestrator.start import Manner, command_line, start

    found = session.find_run(run)
    launcher = _launcher_of(found.directory) if on is None else session.launcher(on, _cluster)
    make = partial(session.make_plan, found.directory / "recipe.yaml", overrides or [], found.directory)
    if from_stage is not None:
        set_aside(make(), launcher, from_stage, before=_launcher_of, command=command_line())
    manner = Manner(follow=follow, as_json=as_json, require_clean=False)
    raise typer.Exit(start(make, launcher, _launcher_of, manner))


@app.command("status")
def show_status(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; the latest by default.")] = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="A live view until nobody works on the run.")] = False,
    goodput: Annotated[bool, typer.Option("--goodput", help="Where the hours of each stage went.")] = False,
    as_json: options.Json = False,
) -> None:
    """Shows how far a run is, and every attempt of its stages.

    Example: orch status quickstart --watch
    """
    from orchestrator.show import Wish, show
    from orchestrator.status import latest_run

    directory = session.find_run(run).directory if run is not None else latest_run(session.runs_folder())
    raise typer.Exit(show(directory, _launcher_of, Wish(watch=watch, goodput=goodput, as_json=as_json)))


@app.command()
def runs(*, as_json: options.Json = False) -> None:
    """Lists the runs under runs/, the latest first.

    Example: orch runs --json
    """
    from orchestrator.display import make_console, runs_table
    from orchestrator.status import known_runs, statuses

    shown = statuses(known_runs(session.runs_folder()), _launcher_of)
    if as_json:
        print(json.dumps(shown, indent=1))
    else:
        make_console().print(runs_table(shown) if shown else f"there are no runs in {session.runs_folder()}")


@app.command()
def logs(
    run: options.RunName,
    stage: options.StageName,
    attempt: options.AttemptNumber = None,
    rank: options.RankNumber = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Goes on until the stage has ended.")] = False,
) -> None:
    """Prints the logs of a stage: of one rank, or of all of them as one.

    Example: orch logs quickstart gcg --rank 1 --follow
    """
    from orchestrator.follow import Wanted, log_lines
    from orchestrator.status import Observer

    observer = Observer(session.find_run(run).directory, _launcher_of)
    wanted = Wanted(stage=stage, attempt=attempt, rank=rank, follow=follow)
    for line in log_lines(observer, wanted, notice=partial(print, file=sys.stderr, flush=True)):
        sys.stdout.write(line)
        sys.stdout.flush()


@app.command()
def cancel(run: options.RunName, stage: Annotated[str | None, typer.Argument(metavar="[STAGE]")] = None) -> None:
    """Asks what runs to save and end. A stage that was named ends the run there.

    Example: orch cancel quickstart
    """
    from orchestrator.status import cancel_run

    directory = session.find_run(run).directory
    print(cancel_run(directory, _launcher_of(directory), stage))


@app.command()
def report(run: options.RunName, output: options.Page = None, against: options.Against = None) -> None:
    """Writes the run's report: one HTML page with lineage, scores, samples, curves, attempts and where the time went.

    Example: orch report quickstart --against quickstart_2
    """
    from orchestrator.report import make_report
    from orchestrator.status import status

    directory = session.find_run(run).directory
    other = None if against is None else session.find_run(against).directory
    for shown in filter(None, (directory, other)):
        status(shown, _launcher_of)  # what ended unseen is closed first
    print(make_report(directory, output, against=other))


@app.command()
def sync(run: options.RunName) -> None:
    """Tells MLflow whatever it has not heard yet of a run.

    Example: orch sync quickstart
    """
    from orchestrator.tracking.forwarder import forward

    print(forward(session.find_run(run).directory, follow=False).message)


@app.command()
def predict(
    export: options.ExportFolder,
    image: options.ImageFile,
    prompt: options.Prompts = None,
    box: options.Boxes = None,
    refer: options.Expressions = None,
    text: options.Texts = None,
    mask: options.Masks = None,
    output: options.Picture = None,
    *,
    dense: options.Dense = False,
    as_json: options.Json = False,
) -> None:
    """Asks an exported model about an image: what its family is made to say, unless asked something else.

    --box describes a box, --refer points at what is meant, --prompt asks freely (<bbox> in it stands for a --box; more
    than one --prompt make a conversation), --text says how well each text fits the image, a --box, or what a --mask
    shows, --dense finds and describes everything. What a model can be asked depends on its family: GLaMM all but
    --text, --mask and --dense. Only PixCLIP tells what a mask shows from what lies in its box.

    A --mask is a PNG of the image's size in which all that is not black is meant, or COCO's run lengths in a JSON file,
    {"size": [height, width], "counts": "..."}, as --json prints them.

    Example: orch predict runs/quickstart/export/model photo.jpg --refer "the left cup" --output answer.png

    Example: orch predict runs/tiny_pixclip/export/model photo.jpg --mask cup.png --text "a red cup" --text "a dog"
    """
    from stages.predict import Asked, answer_lines, parse_box
    from stages.predict import predict as ask

    asked = Asked(
        prompts=tuple(prompt or []), boxes=tuple(parse_box(one) for one in box or []), refer=tuple(refer or []),
        texts=tuple(text or []), dense=dense, masks=tuple(mask or []),
    )  # fmt: skip
    answer = ask(export, image, asked, output)
    for line in [json.dumps(answer, indent=1)] if as_json else answer_lines(answer):
        print(line)


@app.command()
def doctor(on: options.On = "local", *, as_json: options.Json = False) -> None:
    """Looks whether this machine, or a cluster, is fit for runs, and says what to do where it is not. Starts nothing.

    Packages and their versions, run folder, room, clock, MLflow, GPUs; on a cluster, whether Slurm would take a job.

    Example: orch doctor --on my_cluster.yaml
    """
    from orchestrator.doctor.examination import tell
    from orchestrator.start import code_root

    raise typer.Exit(tell(session.launcher(on, _cluster), code_root(), session.runs_folder(), as_json=as_json))


def _cluster(name_or_path: str) -> "Launcher":
    """Returns the cluster that a name under slurm/clusters/ or a file means."""
    from slurm.cluster import read_cluster
    from slurm.launcher import SlurmLauncher

    return SlurmLauncher(read_cluster(name_or_path))


def _launcher_of(directory: Path) -> "Launcher":
    """Returns the place to which the last launch of a run handed it over."""
    return session.launcher_of(directory, _cluster)


if __name__ == "__main__":
    main()
