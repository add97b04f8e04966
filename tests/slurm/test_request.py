"""What sbatch and srun are given: golden texts, and nothing of a recipe that a shell could read as a command."""

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.resources import Resources
from slurm.cluster import Cluster, Container, read_cluster
from slurm.request import job_name, keeper_python, sbatch_parameters, signal_seconds, srun_command
from slurm.sbatch import text

GOLDEN = Path(__file__).parent / "golden"
RUN = Path("/shared/runs/glamm full")
TRAIN = Resources(nodes=4, gpus_per_node=8, hours=24)
CONVERT = Resources(cpus_per_task=8, hours=1.51)


def rendered(cluster: Cluster, resources: Resources, **given: Any) -> str:
    """Renders a job as submitit hands it to sbatch."""
    cluster = cluster if cluster.python else replace(cluster, python="/envs/orch/bin/python")
    values = {"name": "orch-glamm-gcg-0123abcd", "run": RUN, "signal_s": 300, **given}
    return text(
        values["run"] / "gcg" / "slurm", sbatch_parameters(cluster, resources, **values), keeper_python(cluster)
    )


@pytest.mark.parametrize(
    ("golden", "cluster", "resources", "given"),
    [
        ("a100_train", "example_a100", TRAIN, {"after": ("17", "18"), "exclude": ("gpu-3", "gpu-12")}),
        ("a100_convert", "example_a100", CONVERT, {}),
        ("h100_train", "example_h100", TRAIN, {"after": ("17",), "exclude": ("h100-002",)}),
        ("h100_convert", "example_h100", CONVERT, {}),
    ],
)
def test_the_sbatch_text_is_the_golden_one(
    golden: str, cluster: str, resources: Resources, given: dict[str, Any]
) -> None:
    found = rendered(read_cluster(cluster), resources, **given)

    assert (GOLDEN / f"{golden}.sh").read_text(encoding="utf-8") == found + "\n"


@pytest.mark.parametrize("cluster", ["example_a100", "example_h100"])
def test_the_srun_line_is_the_golden_one(cluster: str) -> None:
    known = read_cluster(cluster)
    known = known if known.python else replace(known, python="/envs/orch/bin/python")
    document = {"resources": {"nodes": 4, "gpus_per_node": 8, "hours": 24}}

    found = srun_command(known, document, RUN, "gcg")

    assert (GOLDEN / f"{cluster}.srun").read_text(encoding="utf-8") == "\n".join(map(shlex.quote, found)) + "\n"


def test_apptainer_wraps_the_task_and_mounts_the_run() -> None:
    cluster = Cluster(name="c", container=Container(kind="apptainer", image="/images/orch.sif", mounts=("/data",)))

    found = srun_command(cluster, {"resources": {"gpus_per_node": 2}}, RUN, "gcg")

    begin = found.index("apptainer")
    mounts = ["--bind", "/data:/data", "--bind", f"{RUN}:{RUN}"]
    assert found[begin : begin + 3] == ["apptainer", "exec", "--nv"]
    assert found[begin + 3 : begin + 7] == mounts
    ours = ["env", f"PYTHONPATH={RUN}/code", "python", "-P", "-m", "slurm.task", str(RUN), "gcg"]
    assert found[begin + 7 :] == ["/images/orch.sif", *ours]


def test_a_container_inherits_nothing_that_loads_the_hosts_libraries_but_what_its_cluster_file_says() -> None:
    known = {"LD_LIBRARY_PATH": "/opt/fabric"}
    cluster = Cluster(name="c", container=Container(kind="pyxis", image="i"), environment=known)

    inside = srun_command(cluster, {"resources": {}}, RUN, "gcg")
    outside = srun_command(Cluster(name="c"), {"resources": {}}, RUN, "gcg")

    unset = ["env", "--unset=LD_PRELOAD", "--unset=PYTHONHOME", "--unset=VIRTUAL_ENV", "srun"]
    assert inside[: len(unset)] == unset
    assert outside[0] == "srun"


def test_a_stage_without_gpus_asks_for_the_cpu_partition_and_for_no_gpu() -> None:
    cluster = read_cluster("example_a100")

    found = sbatch_parameters(cluster, CONVERT, name="n", run=RUN, signal_s=1)

    assert found["partition"] == "cpu"
    assert found["constraint"] is None
    assert "gpus_per_node" not in found


def test_a_stage_that_names_no_memory_gets_its_share_of_a_node() -> None:
    cluster = read_cluster("example_a100")

    quarter = sbatch_parameters(cluster, Resources(gpus_per_node=2), name="n", run=RUN, signal_s=1)
    asked = sbatch_parameters(cluster, Resources(gpus_per_node=2, memory_gb=12.5), name="n", run=RUN, signal_s=1)

    assert (quarter["mem"], quarter["cpus_per_task"]) == ("256000M", 16)
    assert asked["mem"] == "12800M"


@pytest.mark.parametrize(
    ("save_s", "step_s", "hours", "expected"),
    [
        (100.0, 5.0, 24.0, 265),  # two saves, a step, and the minute that Slurm may be early
        (None, None, 24.0, 300),  # nothing was measured yet
        (100.0, 5.0, 0.1, 90),  # a short job is told in its last quarter
        (100_000.0, 5.0, None, 65_535),  # what Slurm can count to
        (0.5, 0.1, 24.0, 62),
    ],
)
def test_a_job_is_told_to_stop_early_enough_to_save_twice(
    save_s: float | None, step_s: float | None, hours: float | None, expected: int
) -> None:
    cluster = Cluster(name="c")

    assert expected == signal_seconds(cluster, Resources(hours=hours), save_s=save_s, step_s=step_s)


def test_a_cluster_file_that_says_how_early_is_obeyed() -> None:
    assert signal_seconds(Cluster(name="c", signal_s=77), Resources(hours=1)) == 77


def test_the_name_of_a_job_holds_nothing_but_letters_that_no_shell_knows() -> None:
    found = job_name("my run; $(rm -rf /)\n'\"", "gcg", "0123abcd")

    assert found == "orch-my_run____rm_-rf______-gcg-0123abcd"


NASTY = 'it\'s "a" $(touch owned) `touch owned` ; touch owned & \\ * é'


def test_paths_and_values_with_anything_in_them_reach_the_keeper_as_they_are(tmp_path: Path) -> None:
    run = tmp_path / NASTY
    (run / "code").mkdir(parents=True)
    spy = tmp_path / "a python $(touch owned)"
    spy.write_text('#!/bin/sh\nprintf "%s\\n" "$PYTHONPATH" "$VALUE" "$@"\n', encoding="utf-8")
    spy.chmod(0o755)
    cluster = Cluster(name="c", python=str(spy), environment={"VALUE": NASTY}, comment=NASTY)
    script = rendered(cluster, Resources(), run=run)

    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}
    )

    lines = [str(run / "code"), NASTY, "-P", "-u", "-m", "submitit.core._submit", str(run / "gcg" / "slurm")]
    assert done.stdout.splitlines() == lines
    assert not list(tmp_path.rglob("owned"))


def test_no_secret_of_the_environment_is_in_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t")

    assert "s3cr3t" not in rendered(read_cluster("example_h100"), TRAIN)
