"""The parent of one worker, without Slurm: srun is no more than a few variables of the environment."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.plan import Catalog, plan_recipe
from orchestrator.run import Run
from orchestrator.verdict import verdict
from slurm.cluster import Cluster, write_cluster
from tests import toychain
from tests.command_line import REPOSITORY, alive
from tests.waiting import until

CATALOG = Catalog(stages=toychain.STAGES, families=toychain.FAMILIES)
LITTER = '''
import os, subprocess, sys, time
from tests.toychain import Count

class Litter(Count):
    """Leaves a process behind that has a session of its own, and is told nothing."""

    def run(self, context):
        left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        (context.directory / "left").write_text(str(left.pid))
        return super().run(context)
'''

SLOW_START = """
import sys, time
if "orchestrator.worker" in sys.orig_argv:
    print("starts", flush=True)
    time.sleep(60)
"""


class Place:
    """A prepared run of one stage, and wardens in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        self.stage = self.run / "first"
        self.logs = self.stage / "logs" / "attempt_1"

    def prepare(
        self, stage: Mapping[str, Any], *, target: str | None = None, interface: str = "auto", **more: Any
    ) -> None:
        recipe, written = self.folder / "recipe.yaml", {"name": "toy", "tracking": {"uri": None}, **more}
        recipe.write_text(yaml.safe_dump({**written, "stages": {"first": stage}}), encoding="utf-8")
        plan = plan_recipe(recipe, [], CATALOG, directory=self.run)
        Run(self.run).prepare(plan, REPOSITORY)
        write_cluster(self.run / "cluster.yaml", Cluster(name="c", interface=interface))
        if target is not None:
            document = json.loads((self.stage / "stage.json").read_text(encoding="utf-8"))
            (self.stage / "stage.json").write_text(json.dumps({**document, "target": target}), encoding="utf-8")

    def start(self, **told: str) -> "subprocess.Popen[bytes]":
        environment = {
            "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "1", "ORCH_RENDEZVOUS": "env://", "ORCH_LOCAL_SIZE": "1", "ORCH_ATTEMPT": "1",
            "ORCH_LEFT_S": "", "ORCH_GRACE_S": "9", "ORCH_SIGNAL_S": "60", "ORCH_INTERFACE": "auto",
            "ORCH_KEEPER_TIME": str(time.time()), "PYTHONPATH": f"{self.folder}:{REPOSITORY}", **told,
        }  # fmt: skip
        command = [sys.executable, "-P", "-m", "slurm.task", str(self.run), "first"]
        return subprocess.Popen(command, env={**os.environ, **environment}, process_group=0)

    def pid(self, name: str = "pid") -> int:
        path = self.stage / name
        return int(until(lambda: path.read_text(encoding="ascii") if path.is_file() else ""))

    def exit(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.logs / "rank_0.exit.json").read_text(encoding="utf-8"))
        return record

    def log(self) -> str:
        return (self.logs / "rank_0.log").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


COUNTS = {"stage": "count", "config": {"steps": 400, "pause_s": 0.05, "save_every": 1000}}


def test_a_worker_that_ends_well_leaves_its_outputs_and_no_record_of_an_exit(place: Place) -> None:
    place.prepare({"stage": "count", "config": {"steps": 2}})

    assert place.start().wait(60) == 0
    assert (place.stage / "value" / "manifest.json").is_file()
    assert not (place.logs / "rank_0.exit.json").exists()


def test_a_worker_is_told_before_the_time_is_over_even_if_slurm_is_silent(place: Place) -> None:
    place.prepare(COUNTS)

    code = place.start(ORCH_LEFT_S="28", ORCH_SIGNAL_S="20").wait(60)  # time enough to begin, on a busy machine

    assert code == 0
    assert (place.exit()["exit"], place.exit()["told_to_leave"]) == (75, True)
    left = re.search(r"told to stop by SIGUSR2: (\d+) s", place.log())
    assert left is not None
    assert 0 < int(left[1]) <= 20


def test_a_worker_that_is_told_before_it_can_listen_has_left_as_it_was_told(place: Place) -> None:
    place.prepare(COUNTS)
    (place.folder / "sitecustomize.py").write_text(SLOW_START, encoding="utf-8")
    warden = place.start()
    until(lambda: (place.logs / "rank_0.log").is_file() and "starts" in place.log())
    warden.send_signal(signal.SIGUSR2)

    assert warden.wait(30) != 0
    assert (place.exit()["signal"], place.exit()["told_to_leave"]) == ("SIGTERM", True)
    assert verdict(place.logs, size=1).cause == "preempted"


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_to_every_process_lets_the_worker_save_and_the_others_live(
    place: Place, number: signal.Signals
) -> None:
    place.prepare(COUNTS, target="litter:Litter")
    (place.folder / "litter.py").write_text(LITTER, encoding="utf-8")
    warden = place.start()
    left = place.pid("left")
    until((place.stage / "progress.json").is_file)
    os.kill(place.pid(), number)  # as Slurm does: to all of the step
    os.kill(warden.pid, number)
    if number == signal.SIGUSR2:
        os.kill(left, number)
        assert alive(left)

    assert warden.wait(30) == 0  # nobody has to be killed for it
    assert (place.exit()["exit"], place.exit()["told_to_leave"]) == (75, True)
    assert f"told to stop by {number.name}: 9 s are left" in place.log()
    assert len(list((place.stage / "checkpoints").glob("step_*"))) == 1
    assert not alive(left)


def test_the_signal_of_a_time_limit_leaves_the_time_until_the_limit(place: Place) -> None:
    place.prepare(COUNTS)
    warden = place.start(ORCH_LEFT_S="100")
    until((place.stage / "progress.json").is_file)
    os.kill(warden.pid, signal.SIGUSR2)

    assert warden.wait(30) == 0
    left = re.search(r"told to stop by SIGUSR2: (\d+) s", place.log())
    assert left is not None
    assert 50 < int(left[1]) <= 100  # not the nine of the grace time


def test_a_worker_that_is_killed_takes_the_step_along_and_says_where_it_was(place: Place) -> None:
    place.prepare(COUNTS)
    warden = place.start()
    until((place.stage / "progress.json").is_file)
    os.kill(place.pid(), signal.SIGKILL)

    assert warden.wait(30) == 1
    record = place.exit()
    assert (record["signal"], record["told_to_leave"], record["phase"]) == ("SIGKILL", False, "working")
    assert record["step"] > 0


def test_a_worker_that_hangs_is_ended_with_its_stacks_on_disk(place: Place) -> None:
    place.prepare({"stage": "nap", "config": {"seconds": 60}}, watch={"work_s": 1, "factor": 2})

    assert place.start().wait(60) == 1
    record = place.exit()
    assert "without a sign" in record["hang"]
    assert "toychain.py" in record["stands"]
    assert "in run" in (place.logs / "rank_0.stacks.txt").read_text(encoding="utf-8")


def test_a_node_that_is_not_fit_for_work_leaves_at_once_and_says_why(place: Place) -> None:
    place.prepare(COUNTS, interface="nowhere0")

    assert place.start().wait(30) == 76
    assert place.exit()["exit"] == 76
    (found,) = place.logs.glob("node_*.json")
    assert "nowhere0" in json.loads(found.read_text(encoding="utf-8"))["faults"][0]


def test_nothing_of_a_rank_survives_a_warden_that_is_killed(place: Place) -> None:
    place.prepare(COUNTS)
    warden = place.start()
    worker = place.pid()
    warden.kill()
    warden.wait()

    until(lambda: not alive(worker))
