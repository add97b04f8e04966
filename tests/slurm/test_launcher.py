"""What a cluster is asked for and cannot give is told before anything is queued, all at once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import SurroundingsError
from orchestrator.plan import Catalog, Plan, plan_recipe
from orchestrator.run import Run
from orchestrator.state import read_launch, read_state, write_launch
from slurm.cluster import FOLDER, Cluster, Container, read_cluster
from slurm.launcher import SlurmLauncher
from slurm.sbatch import SubmissionRefused
from stages import FAMILIES, STAGES
from tests import toychain
from tests.command_line import REPOSITORY
from tests.slurm.toyslurm import ToySlurm, toy_run

CLUSTER = Cluster(name="toy", gpus_per_node=8, cpus_per_node=64, memory_gb_per_node=500.0, max_hours=24.0, max_nodes=4)
GPUS = Cluster(name="toy", gpus_per_node=8)


def plan(folder: Path, **resources: Any) -> Plan:
    """Plans a recipe of one stage that asks for these resources."""
    recipe = folder / "recipe.yaml"
    stages = {"first": {"stage": "count", "resources": resources}}
    document = {"name": "toy", "runs": str(folder / "runs"), "tracking": {"uri": None}, "stages": stages}
    recipe.write_text(yaml.safe_dump(document), encoding="utf-8")
    return plan_recipe(recipe, [], Catalog(stages=toychain.STAGES, families={}))


def faults(cluster: Cluster, made: Plan) -> dict[str, str]:
    return {
        fault.key.removeprefix("stages.first.resources."): fault.message for fault in SlurmLauncher(cluster).check(made)
    }


def test_everything_that_is_too_much_is_told_at_once(tmp_path: Path) -> None:
    made = plan(tmp_path, nodes=5, gpus_per_node=9, cpus_per_task=10, memory_gb=501, hours=25, tasks_per_node=10)

    found = faults(CLUSTER, made)

    keys = {"nodes", "gpus_per_node", "cpus_per_task", "memory_gb", "hours", "tasks_per_node"}
    assert keys == set(found)
    assert found["nodes"] == "asks for 5 nodes; toy has at most 4"


def test_hours_must_be_given_where_the_cluster_has_a_limit(tmp_path: Path) -> None:
    made = plan(tmp_path)

    assert list(faults(CLUSTER, made)) == ["hours"]
    assert not faults(replace(CLUSTER, max_hours=None), made)


def test_what_fits_is_not_complained_about(tmp_path: Path) -> None:
    made = plan(tmp_path, nodes=4, gpus_per_node=8, cpus_per_task=8, memory_gb=500, hours=24)

    assert not faults(CLUSTER, made)


@pytest.mark.parametrize(("sign", "container"), [("%", "none"), ("\\", "none"), ("\n", "none"), (",", "pyxis")])
def test_a_folder_whose_name_slurm_would_misread_is_refused(tmp_path: Path, sign: str, container: Any) -> None:
    folder = tmp_path / f"a{sign}b"
    folder.mkdir()
    cluster = replace(GPUS, container=Container(kind=container, image="image"))

    found = faults(cluster, plan(folder))

    assert "which Slurm cannot have in a path" in found["runs"]


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_the_full_recipe_fits_every_example_cluster(name: str) -> None:
    made = plan_recipe(REPOSITORY / "recipes" / "glamm_full.yaml", [], Catalog(stages=STAGES, families=FAMILIES))

    assert not SlurmLauncher(read_cluster(name)).check(made)


def test_a_run_that_somebody_else_launched_is_looked_at_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "toy"
    write_launch(run, toy_run(run, {"first": []}))
    monkeypatch.setattr("os.getuid", lambda: 4711)

    assert not SlurmLauncher(GPUS).settle(run)
    assert not (run / "first" / "slurm").exists()


def test_without_slurm_a_launch_says_so_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.run import Run
    from orchestrator.state import read_launch, read_state

    run = Run(tmp_path / "toy")
    toy_run(run.directory, {"first": []})
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(SurroundingsError, match=r"there is no Slurm here.*nothing was submitted"):
        SlurmLauncher(GPUS).submit(run, run.lock("orch launch"))

    launch = read_launch(run.directory)
    assert launch is not None
    assert launch.ended is not None
    assert read_state(run.directory / "first").state == "waiting"
    assert run.holder() is None


def test_what_began_before_a_later_stage_was_refused_is_ended_before_the_run_is_free(tmp_path: Path) -> None:
    toy_run(tmp_path / "toy", {"data": [], "train": ["data"], "score": ["train"]})
    run, launcher, slurm = Run(tmp_path / "toy"), SlurmLauncher(CLUSTER), ToySlurm(tmp_path / "toy")
    launcher._slurm = slurm  # type: ignore[assignment] # as far as the launcher needs one

    def begin_the_first() -> str:
        if len(slurm.asked) == 2:
            slurm.begin("1")
        return "taken"

    slurm.fate, slurm.refused = begin_the_first, {"score"}
    with pytest.raises(SubmissionRefused):
        launcher.submit(run, run.lock("orch launch"))
    holder = launcher.holder(run.directory)
    slurm.end("1", "CANCELLED", "by 0")
    launcher.settle(run.directory)
    launch = read_launch(run.directory)

    assert holder is not None
    assert "job 1 (data) is RUNNING" in holder
    assert launch is not None
    assert launch.ended is not None
    assert launcher.holder(run.directory) is None
    assert read_state(run.directory / "data").state == "cancelled"
    assert slurm.asked == ["data", "train", "score"]
