"""The tiny GLaMM chain on three hosts with one rank each, through a real Slurm, to its end."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slurm.devcluster import DevCluster

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch"), pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[2]
TRAINING = ("words", "align", "region", "gcg", "sft")
SPREAD = [
    override
    for stage in TRAINING
    for override in (
        f"stages.{stage}.resources.nodes=3",
        f"stages.{stage}.resources.tasks_per_node=1",
        f"stages.{stage}.config.train.global_batch=6",
    )
]


def orch(devcluster: DevCluster, folder: Path, *arguments: str) -> str:
    """Runs a command of orch that must end well."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *arguments], cwd=folder, text=True, capture_output=True,
        env={**os.environ, **devcluster.environment(), "PYTHONPATH": str(REPOSITORY)}, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def run(devcluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs the chain, once for all tests of this file."""
    folder = tmp_path_factory.mktemp("glamm")
    recipe = str(REPOSITORY / "recipes" / "tiny" / "glamm.yaml")
    orch(devcluster, folder, "launch", recipe, *SPREAD, "--on", str(devcluster.cluster_file()), "--follow")
    return folder / "runs" / "tiny_glamm"


def stages(devcluster: DevCluster, run: Path) -> dict[str, dict[str, Any]]:
    shown = json.loads(orch(devcluster, run.parents[1], "status", "tiny_glamm", "--json"))
    return {stage["name"]: stage for stage in shown["stages"]}


def test_every_stage_is_done_at_the_first_attempt(devcluster: DevCluster, run: Path) -> None:
    shown = stages(devcluster, run)

    assert {name: stage["state"] for name, stage in shown.items()} == dict.fromkeys(shown, "done")
    assert {len(stage["attempts"]) for stage in shown.values()} == {1}


def test_every_training_stage_was_partitioned_over_three_hosts(devcluster: DevCluster, run: Path) -> None:
    shown = stages(devcluster, run)

    for name in TRAINING:
        assert sorted(shown[name]["attempts"][0]["nodes"]) == sorted(devcluster.hosts)
        log = (run / name / "logs" / "attempt_1" / "rank_0.log").read_text(encoding="utf-8")
        assert "parameters partitioned over 3 ranks" in log


def test_one_job_a_stage_and_no_more(devcluster: DevCluster, run: Path) -> None:
    devcluster.wait_idle(60)  # the last job tells MLflow the rest once the run is over
    shown = stages(devcluster, run)
    since = ["sacct", "-X", "-D", "-n", "-P", "-S", "now-1days", "-o", "JobName,State"]

    jobs = [line.split("|") for line in devcluster.run(since).stdout.splitlines()]

    ours = {name: state for name, state in jobs if name.startswith("orch-tiny_glamm-")}
    assert len(ours) == len([name for name, _ in jobs if name.startswith("orch-tiny_glamm-")]) == len(shown)
    assert set(ours.values()) == {"COMPLETED"}


def test_the_report_stands_alone(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")

    assert "<svg" in page
    assert 'src="http' not in page
