"""Launching on a real Slurm: whoever is killed and whoever cancels, each stage runs once, and it is said why not."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from slurm import queue
from slurm.cluster import read_cluster
from slurm.devcluster import DevCluster
from slurm.launcher import SlurmLauncher
from tests.command_line import REPOSITORY, Orch

pytestmark = [pytest.mark.needs("root"), pytest.mark.slow]

STAGES = {
    "first": {"stage": "count", "config": {"steps": 2}},
    "second": {"stage": "add", "inputs": {"value": "first.value"}},
    "third": {"stage": "add", "inputs": {"value": "second.value"}},
}
SLOW = {
    "first": {"stage": "count", "config": {"steps": 200, "pause_s": 0.1, "save_every": 10}},
    "second": STAGES["second"],
}


class Place:
    """A folder in which `orch` knows the cluster."""

    def __init__(self, folder: Path, cluster: DevCluster) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.orch, self.devcluster = Orch(folder), cluster
        self.run = self.orch.run_folder

    def cluster_file(self, **changes: Any) -> Path:
        written = yaml.safe_load(self.devcluster.cluster_file().read_text(encoding="utf-8"))
        path = self.orch.folder / "cluster.yaml"
        path.write_text(yaml.safe_dump({**written, **changes}), encoding="utf-8")
        return path

    def launch(self, stages: Mapping[str, Any], *, code: int = 0, **changes: Any) -> str:
        cluster = self.cluster_file(**changes)
        done = self.orch("launch", self.orch.recipe(stages), "--on", cluster, "--detach", code=code)
        return done.stdout + done.stderr

    def killed(self, when: str) -> str:
        """Launches and is killed at a change to the world; returns what was printed."""
        arguments = ["launch", self.orch.recipe(STAGES), "--on", self.cluster_file(), "--detach"]
        command = [sys.executable, "-P", REPOSITORY / "tests/slurm/dying.py", when, self.run, "orch", *arguments]
        done = subprocess.run(
            list(map(str, command)), cwd=self.orch.folder, env=self.orch._environment, text=True, capture_output=True,
            check=False, timeout=60,
        )  # fmt: skip
        return done.stdout

    def settle(self) -> bool:
        """Does what `orch status` does first; True once the run has ended."""
        SlurmLauncher(read_cluster(self.cluster_file())).settle(self.run)
        return json.loads((self.run / "launch.json").read_text(encoding="utf-8"))["ended"] is not None

    def submissions(self, stage: str) -> list[dict[str, Any]]:
        lines = (self.run / stage / "slurm" / "submissions.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def job(self, stage: str) -> str:
        job_id: str = json.loads((self.run / stage / "slurm" / "submission.json").read_text(encoding="utf-8"))["job_id"]
        return job_id


@pytest.fixture
def place(devcluster: DevCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name, value in devcluster.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # who settles may submit: jobs need the toys
    yield Place(tmp_path / "place", devcluster)
    devcluster.run(["scancel", "--user=root"])
    devcluster.wait_idle()


def _bring_to_an_end(places: list[Place], seconds: float) -> None:
    """Lets everybody look again and again, as `orch status --watch` would; launches again what was never launched."""
    for place in places:
        launch = place.run / "launch.json"
        if not launch.is_file() or (not (place.run / "cluster.yaml").is_file()):
            place.launch(STAGES)
    deadline = time.monotonic() + seconds
    left = list(places)
    while left and time.monotonic() < deadline:
        left = [place for place in left if not place.settle()]
        time.sleep(0.5)
    assert not [place.run for place in left]
    places[0].devcluster.wait_idle()  # a stage is done a moment before its job is


def _ran_once(place: Place) -> None:
    """Asserts that each stage ran in one attempt, and that Slurm completed one job of it, of all it ever had."""
    for name in STAGES:
        state = json.loads((place.run / name / "state.json").read_text(encoding="utf-8"))
        names = sorted({line["name"] for line in place.submissions(name)})
        jobs = [job for found in queue.find(names).jobs.values() for job in found]
        completed = [job.id for job in jobs if job.state == "COMPLETED"]
        assert [attempt["state"] for attempt in state["attempts"]] == ["done"], (place.run, name)
        assert [state["attempts"][0]["job_id"]] == completed, (place.run, name)


def _kill_and_recover(folder: Path, cluster: DevCluster, moments: list[str]) -> None:
    places = [Place(folder / moment, cluster) for moment in moments]
    for place, moment in zip(places, moments, strict=True):
        place.killed(moment)

    _bring_to_an_end(places, 40 + 8 * len(places))

    for place in places:
        _ran_once(place)


def test_a_launch_killed_at_any_write_neither_loses_a_stage_nor_runs_it_twice(
    place: Place, devcluster: DevCluster, tmp_path: Path
) -> None:
    total = int(place.killed("0").split()[-1])
    moments = random.Random(total).sample(range(1, total + 1), 4)

    _kill_and_recover(tmp_path, devcluster, [*map(str, moments), f"{moments[0]}.5"])

    _bring_to_an_end([place], 40)
    _ran_once(place)


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_launch_killed_at_every_write_neither_loses_a_stage_nor_runs_it_twice(
    place: Place, devcluster: DevCluster, tmp_path: Path
) -> None:
    total = int(place.killed("0").split()[-1])
    moments = [moment for number in range(1, total + 1) for moment in (str(number), f"{number}.5")]

    for first in range(0, len(moments), 12):
        _kill_and_recover(tmp_path, devcluster, moments[first : first + 12])


def test_a_job_cancelled_by_hand_says_who_did_it_and_its_followers_wait(place: Place) -> None:
    place.launch(SLOW)
    place.orch.wait(lambda: place.orch.stage("first")["state"] == "running")

    place.devcluster.run(["scancel", place.job("first")])

    place.orch.wait(place.orch.over, 40)
    first, second = place.orch.status()["stages"]
    assert (first["state"], first["attempts"][-1]["cause"], second["state"]) == ("cancelled", "cancelled", "waiting")
    assert "root" in first["attempts"][-1]["detail"]
    place.orch.wait(lambda: not place.devcluster.run(["squeue", "--noheader"], check=True).stdout, 20)


def test_without_accounting_a_chain_is_settled_from_what_the_controller_knows(place: Place) -> None:
    place.devcluster.stop_accounting()
    try:
        place.launch(STAGES)
        place.orch.wait(place.orch.over, 60)
    finally:
        place.devcluster.start_accounting()

    assert place.orch.status()["state"] == "done"


def test_a_plan_for_the_cluster_says_where_and_when_each_stage_would_begin(place: Place) -> None:
    stages = {name: {**stage, "resources": {"hours": 2}} for name, stage in STAGES.items()}

    shown = place.orch.json("plan", place.orch.recipe(stages), "--on", place.cluster_file())

    first, second, third = (stage["estimated_start"] for stage in shown["stages"])
    assert [stage["queue"] for stage in shown["stages"]] == ["cpu"] * 3
    assert abs(first - time.time()) < 600
    assert (second - first, third - second) == (7200, 7200)
    assert not place.devcluster.run(["squeue", "--noheader"]).stdout


def test_a_plan_that_slurm_would_refuse_says_so_for_each_stage(place: Place) -> None:
    cluster = place.cluster_file(cpu_partition="nowhere")

    shown = place.orch.json("plan", place.orch.recipe(STAGES), "--on", cluster, code=2)

    assert [fault["key"] for fault in shown["faults"]] == [f"stages.{name}.resources" for name in STAGES]
    assert all("(cluster file: partition)" in fault["message"] for fault in shown["faults"])
