"""Jobs on a real Slurm of three hosts: what a keeper does when ranks, hosts and time are lost."""

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.progress import read_progress
from orchestrator.state import Attempt, read_state
from slurm import sbatch
from slurm.cluster import read_cluster
from slurm.devcluster import DevCluster
from slurm.job import StageJob
from slurm.request import keeper_python
from slurm.submissions import folder_of
from tests.command_line import Orch

pytestmark = [pytest.mark.needs("root"), pytest.mark.slow]

SLOW = {"stage": "count", "config": {"steps": 60, "save_every": 5, "pause_s": 0.15}}
AFTER = {"stage": "add", "inputs": {"value": "first.value"}}
OF_SLURM = {"bash", "sleep", "slurmd", "setsid", "nsenter", "unshare", "slurmstepd"}


class Chain:
    """A chain of toy stages on the cluster."""

    def __init__(self, orch: Orch, cluster: DevCluster) -> None:
        self.orch, self.cluster = orch, cluster

    def launch(self, stages: Mapping[str, Any], **cluster: Any) -> None:
        path = self.orch.folder / "cluster.yaml"
        written = yaml.safe_load(self.cluster.cluster_file().read_text(encoding="utf-8"))
        path.write_text(yaml.safe_dump({**written, **cluster}), encoding="utf-8")
        self.orch("launch", self.orch.recipe(stages), "--on", path, "--detach")

    def attempts(self, stage: str) -> list[Attempt]:
        return list(read_state(self.orch.run_folder / stage).attempts)

    def reaches(self, stage: str, step: int) -> str:
        """Waits until a stage has counted so far; returns the host on which it does."""
        self.orch.wait(lambda: (read_progress(self.orch.run_folder / stage) or {}).get("done", 0) >= step, 40)
        return self.attempts(stage)[-1].nodes[0]

    def ends(self, seconds: float = 60) -> dict[str, Any]:
        self.orch.wait(self.orch.over, seconds)
        return self.orch.status()


@pytest.fixture
def chain(devcluster: DevCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chain]:
    for name, value in devcluster.environment().items():
        monkeypatch.setenv(name, value)
    orch = Orch(tmp_path)
    orch._environment.update(devcluster.environment())
    _nothing_runs(devcluster)  # or an earlier file's test left it there
    yield Chain(orch, devcluster)
    _nothing_runs(devcluster)


def _nothing_runs(cluster: DevCluster) -> None:
    cluster.run(["scancel", "--user=root"])
    cluster.wait_idle()
    until = time.monotonic() + 30  # the last ranks of a busy machine were seen 5 s after Slurm called their hosts idle
    while left := {host: lines for host in cluster.hosts if (lines := _foreign(cluster, host))}:
        assert time.monotonic() < until, f"{left}\n{cluster.run(['sacct', '-X', '-n', '-P']).stdout}"
        time.sleep(0.1)


def _foreign(cluster: DevCluster, host: str) -> list[str]:
    """Lists the command lines of what runs on a host and is not Slurm's own."""
    return [line for pid in cluster.pids(host) if (line := _command_of(pid))]


def _command_of(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        line = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").replace("\0", " ")
    except OSError:
        return ""
    return "" if name in OF_SLURM else f"{pid} {line or name}"


def test_a_chain_runs_on_three_hosts_and_its_last_job_puts_the_run_in_order(chain: Chain) -> None:
    wide = {"stage": "greet", "resources": {"nodes": 3}}
    chain.launch({"first": {**SLOW, "config": {"steps": 4}}, "second": AFTER, "wide": wide})

    shown = chain.ends()

    assert [stage["state"] for stage in shown["stages"]] == ["done"] * 3
    assert (chain.orch.run_folder / "wide" / "value" / "value.json").read_text(encoding="utf-8").split('"')[1::2] == [
        "0 of 3", "1 of 3", "2 of 3",
    ]  # fmt: skip
    assert (chain.orch.run_folder / "report.html").is_file()


def test_a_rank_that_is_killed_begins_again_in_the_same_allocation_within_seconds(chain: Chain) -> None:
    chain.launch({"first": SLOW, "second": AFTER})
    host = chain.reaches("first", 8)
    chain.cluster.in_host(host, ["kill", "-9", str(chain.orch.pid("first"))], check=True)

    shown = chain.ends()

    lost, again = chain.attempts("first")
    assert (lost.state, lost.cause, again.state) == ("failed", "unknown", "done")
    assert "SIGKILL" in lost.detail
    assert lost.job_id == again.job_id
    assert (again.from_step or 0) >= 5
    assert again.started - (lost.ended or 0) < 20  # in the queue it would wait for minutes
    assert shown["state"] == "done"


def test_a_lost_host_costs_one_attempt_and_the_job_goes_on_elsewhere_under_its_own_id(chain: Chain) -> None:
    chain.launch({"first": SLOW, "second": AFTER})
    host = chain.reaches("first", 8)
    chain.cluster.kill_host(host)
    try:
        shown = chain.ends(90)
    finally:
        chain.cluster.start_host(host)

    lost, again = chain.attempts("first")
    assert (lost.state, lost.cause, again.state) == ("failed", "node_failure", "done")
    assert lost.job_id == again.job_id
    assert host not in again.nodes
    assert (again.from_step or 0) >= 5
    assert shown["state"] == "done"


def test_a_preempted_job_saves_within_the_grace_time_and_waits_again_under_its_own_id(chain: Chain) -> None:
    chain.launch({"first": SLOW, "second": AFTER})
    chain.reaches("first", 8)
    chain.cluster.run(
        ["sbatch", "--partition=urgent", "--nodes=3", "--exclusive", "--wrap=sleep 1", "--output=/dev/null"]
    )

    shown = chain.ends(90)

    left, again = chain.attempts("first")
    assert (left.cause, again.state) == ("preempted", "done")
    assert left.job_id == again.job_id
    assert again.from_step == left.to_step  # saved where it stood
    assert shown["state"] == "done"


def test_a_job_whose_time_ends_saves_first_and_goes_on_in_the_queue(chain: Chain) -> None:
    brief = {**SLOW, "config": {"steps": 150, "save_every": 1000, "pause_s": 0.15}, "resources": {"hours": 1 / 60}}
    chain.launch({"first": brief}, signal_s=50)

    shown = chain.ends(120)

    *told, last = chain.attempts("first")
    assert {(one.cause, one.job_id) for one in told} == {("timeout", last.job_id)}, [one.detail for one in told]
    assert [one.from_step for one in (*told[1:], last)] == [one.to_step for one in told]
    assert last.from_step != 0
    assert shown["state"] == "done"


def test_a_signal_that_comes_before_anybody_can_hear_it_is_no_failure_of_the_stage(chain: Chain) -> None:
    waits, python = chain.orch.folder / "waits", chain.orch.folder / "python"
    slow = f'case "$*" in *slurm.task*) mkdir "{waits}" 2> /dev/null && sleep 20;; esac'
    python.write_text(f'#!/bin/sh\n{slow}\nexec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    chain.launch({"first": {"stage": "count"}}, python=str(python))
    chain.orch.wait(waits.is_dir)
    time.sleep(1)
    chain.cluster.run(["scancel", "--signal=USR2", chain.attempts("first")[0].job_id])

    shown = chain.ends()

    left, again = chain.attempts("first")
    assert (left.cause, again.state) == ("preempted", "done"), left.detail
    assert "begun" in left.detail
    assert left.job_id == again.job_id
    assert shown["state"] == "done"


def test_a_node_that_is_not_fit_for_work_is_left_out_and_remembered(chain: Chain) -> None:
    host, remount = chain.cluster.hosts[0], ["mount", "-o", "remount,size={}", "/dev/shm"]
    chain.cluster.in_host(host, [word.format("1m") for word in remount], check=True)
    try:
        ledger = chain.orch.folder / "nodes.jsonl"
        chain.launch({"first": {**SLOW, "config": {"steps": 4}}}, ledger=str(ledger))
        shown = chain.ends()
    finally:
        chain.cluster.in_host(host, [word.format("50%") for word in remount], check=True)

    bad, good = chain.attempts("first")
    assert (bad.cause, bad.node, bad.nodes) == ("node_failure", host, (host,))
    assert (good.nodes, good.job_id) == ((chain.cluster.hosts[1],), bad.job_id)
    assert yaml.safe_load(ledger.read_text(encoding="utf-8"))["node"] == host
    assert shown["state"] == "done"


def test_where_slurm_queues_no_job_again_the_stage_gets_a_new_one_and_its_follower_waits_for_that(chain: Chain) -> None:
    chain.launch({"first": SLOW, "second": AFTER}, requeue=False)
    chain.reaches("first", 8)
    follower = yaml.safe_load((chain.orch.run_folder / "second/slurm/submission.json").read_bytes())["job_id"]
    chain.cluster.run(["scancel", "--signal=TERM", chain.attempts("first")[0].job_id])

    shown = chain.ends()

    left, again = chain.attempts("first")
    assert (left.cause, again.state) == ("preempted", "done")
    assert left.job_id != again.job_id
    assert chain.attempts("second")[0].job_id == follower
    assert shown["state"] == "done"


def test_a_stage_that_is_cancelled_saves_first_and_its_follower_leaves_the_queue(chain: Chain) -> None:
    chain.launch({"first": SLOW, "second": AFTER})
    chain.reaches("first", 8)
    chain.orch("cancel", "toy")

    shown = chain.ends(30)

    (only,) = chain.attempts("first")
    assert (only.state, only.cause) == ("cancelled", "cancelled")
    assert only.saved_step == only.to_step
    assert [stage["state"] for stage in shown["stages"]] == ["cancelled", "cancelled"]


def test_a_job_that_slurm_runs_twice_leaves_at_once_and_touches_nothing(chain: Chain) -> None:
    chain.launch({"first": SLOW})
    chain.reaches("first", 3)
    stage = chain.orch.run_folder.resolve() / "first"
    before = (stage / "slurm" / "submission.json").read_bytes()
    token = yaml.safe_load(before)["token"]
    python = keeper_python(read_cluster(chain.cluster.cluster_file()))
    setup = {"setup": [f"export PYTHONPATH={stage.parent / 'code'}"], "use_srun": False, "time": 5}
    double = sbatch.send(folder_of(stage), setup, python, StageJob(run=str(stage.parent), stage="first", token=token))

    def exit_code() -> str:
        return chain.cluster.run(["sacct", "-n", "-X", "-j", double, "-o", "state"]).stdout.strip()

    chain.orch.wait(lambda: exit_code() == "FAILED", 20)
    assert len(chain.attempts("first")) == 1
    assert (stage / "slurm" / "submission.json").read_bytes() == before
    assert chain.ends()["state"] == "done"


def test_a_mistake_in_the_code_ends_the_run_and_a_human_is_asked_for(chain: Chain) -> None:
    heard = chain.orch.folder / "heard"
    tells = {"command": [shutil.which("tee"), "-a", str(heard)]}
    chain.launch({"first": {"stage": "fail", "config": {"how": "error"}}, "second": AFTER}, notify=tells)

    shown = chain.ends()

    (only,) = chain.attempts("first")
    assert (only.cause, only.detail) == ("code_error", "ValueError: the toy is broken")
    assert [stage["state"] for stage in shown["stages"]] == ["failed", "waiting"]
    assert yaml.safe_load(heard.read_text(encoding="utf-8"))["event"] == "needs_human"
