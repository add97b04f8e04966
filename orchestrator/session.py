"""What the words of a command line mean: which stages there are, where they run, which run or recipe is meant."""

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import InputError

if TYPE_CHECKING:
    from orchestrator.launcher import Launcher
    from orchestrator.plan import Catalog, Plan
    from orchestrator.run import Run

Clusters = Callable[[str], "Launcher"]  # a name or a file -> the cluster it means; only cli.py knows any

CATALOG = "ORCH_CATALOG"  # names another module with STAGES and FAMILIES: where a plug-in package joins
RUNS = "ORCH_RUNS"  # the folder in which runs are found by name; `runs` by default


def catalog() -> "Catalog":
    """Returns every stage that a recipe can name: those of `stages`, or of the module that ORCH_CATALOG names."""
    from orchestrator.plan import Catalog

    name = os.environ.get(CATALOG, "stages")
    try:
        module = importlib.import_module(name)
        return Catalog(stages=module.STAGES, families=module.FAMILIES)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{CATALOG}: {name!r} is no module with STAGES and FAMILIES: {error}") from error


def launcher(on: str, clusters: Clusters) -> "Launcher":
    """Returns the place that `--on` names: this machine, or a cluster by name or by file."""
    from orchestrator.local import LocalLauncher

    return LocalLauncher() if on == LocalLauncher.name else clusters(on)


def launcher_of(directory: Path, clusters: Clusters) -> "Launcher":
    """Returns the place to which the last launch of a run handed it over, as its cluster file was then.

    Without such a file in the run folder nothing was ever handed to a cluster.
    """
    from orchestrator.launcher import CLUSTER
    from orchestrator.local import LocalLauncher
    from orchestrator.state import read_launch

    launch, cluster = read_launch(directory), directory / CLUSTER
    if launch is None or launch.launcher == LocalLauncher.name or not cluster.exists():
        return LocalLauncher()
    return clusters(str(cluster))


def make_plan(recipe: Path, overrides: Sequence[str], directory: Path | None = None) -> "Plan":
    """Plans a recipe in its own run folder, or in the one given."""
    from orchestrator.plan import make_plan as plan_for
    from orchestrator.plan import plan_recipe
    from orchestrator.recipe import load_recipe

    if directory is None:
        return plan_recipe(recipe, overrides, catalog())
    return plan_for(load_recipe(recipe, overrides), catalog(), directory)


def find_run(name_or_path: str) -> "Run":
    """Returns the run that is meant by a folder or by a name."""
    from orchestrator.run import Run

    return Run.find(name_or_path, runs_folder())


def runs_folder() -> Path:
    """Returns the folder in which runs are found by name."""
    return Path(os.environ.get(RUNS, "runs"))


def find_shards(words: str) -> Path:
    """Returns the folder that is meant by a path, by RUN/STAGE/OUTPUT, or by RUN:STAGE.OUTPUT, reused or not."""
    from orchestrator.state import read_plain_stage

    if Path(words).exists():
        return Path(words)
    run, colon, rest = words.partition(":")
    parts = rest.split(".") if colon else words.rsplit("/", 2)[1:]
    try:
        stage, output = parts
        found = find_run(run if colon else words.rsplit("/", 2)[0])
    except (ValueError, InputError) as error:
        known = f"; {error}" if colon and isinstance(error, InputError) else ""
        allowed = "a path, RUN/STAGE/OUTPUT, RUN:STAGE.OUTPUT"
        raise InputError(f"{words} does not exist; allowed: {allowed}{known}") from None
    outputs = read_plain_stage(found.directory / stage)["outputs"]
    if output not in outputs:
        raise InputError(f"the stage {stage} has no output {output!r}; it has {', '.join(outputs)}")
    return Path(outputs[output]["path"])
