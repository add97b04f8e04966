"""The commands of orch over a real Slurm: what they say of jobs, and what they do to them."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.devcluster import DevCluster
from slurm.ledger import Ledger
from tests.slurm.line import Line
from tests.slurm.programs import Programs

pytestmark = [pytest.mark.needs("root"), pytest.mark.slow]

SLOW = {"stage": "count", "config": {"steps": 900, "save_every": 5, "pause_s": 0.1}}
AFTER = {"stage": "add", "inputs": {"value": "first.value"}}


@pytest.fixture
def line(devcluster: DevCluster, tmp_path: Path) -> Iterator[Line]:
    yield Line(tmp_path, devcluster)
    devcluster.run(["scancel", "--user=root"])
    # a controller that was away drains nodes whose jobs it does not know any more
    devcluster.run(["scontrol", "update", f"NodeName={','.join(devcluster.hosts)}", "State=RESUME"])
    devcluster.wait_idle()


def test_the_doctor_asks_slurm_and_submits_nothing(line: Line) -> None:
    fit = {one["about"]: one["level"] for one in line.json("doctor", "--on", line.cluster_file)["findings"]}
    line.describe(cpu_partition="nowhere")
    shown = line.json("doctor", "--on", line.cluster_file, code=3)

    (fault,) = [one for one in shown["findings"] if one["level"] == "fault"]
    assert {fit[about] for about in ("Slurm", "a job without GPUs", "accounting")} == {"ok"}
    assert (fault["about"], shown["fit"]) == ("a job without GPUs", False)
    assert "partition" in fault["message"]
    assert line.jobs() == []


def test_a_chain_is_watched_refused_a_second_time_and_cancelled(line: Line) -> None:
    two = {**SLOW, "resources": {"nodes": 2}}
    launched = line.launch({"first": two, "second": AFTER}, "--detach")
    line.runs_at("first", 3)
    shown = line.status()
    first, second = shown["stages"]
    table = line("status", "toy").stdout
    refused = line.launch({"first": two, "second": AFTER}, code=3).stderr
    here = line("launch", line.recipe({"first": SLOW, "second": AFTER}), code=3).stderr
    redone = line("resume", "toy", "--from", "second", code=3).stderr
    cancelled = line("cancel", "toy").stdout
    line.wait(line.over, 30)
    ended = line.status()

    job = first["attempts"][0]["job_id"]
    assert f"first job {job}" in launched.stdout
    assert (shown["state"], first["state"], second["state"]) == ("running", "running", "queued")
    assert len(first["attempts"][0]["nodes"]) == 2
    assert first["eta_s"] > 0
    assert second["waiting"]["reason"] == "it waits for first"
    assert f"first: job {job} on" in table
    for said in (refused, here, redone):
        assert "is being worked on" in said
        assert job in said
        assert "RUNNING" in said
    assert "first" in cancelled
    assert ended["state"] == "cancelled"
    assert first["attempts"][0]["number"] == ended["stages"][0]["attempts"][-1]["number"]
    assert ended["stages"][0]["attempts"][-1]["cause"] == "cancelled"
    assert list((line.run_folder / "first" / "checkpoints").glob("step_*"))
    line.queue_empties()


def test_logs_follow_all_ranks_through_a_requeue_and_resume_goes_where_it_was(line: Line) -> None:
    counting = {"stage": "count", "config": {"steps": 40, "pause_s": 0.2}, "resources": {"nodes": 2}}
    line.launch({"first": counting}, "--detach")
    logs = line.start("logs", "toy", "first", "--follow")
    line.runs_at("first", 3)
    line.cluster.run(["scontrol", "requeue", line.stage("first")["attempts"][0]["job_id"]], check=True)
    output, notices = logs.communicate(timeout=90)

    assert logs.returncode == 0, notices
    assert "attempt 1 has ended" in notices
    assert "attempt 2 (job" in notices
    assert output.count("[rank 1] ") >= 2
    assert "done in" in output.splitlines()[-1] or "done in" in output.splitlines()[-2]
    line("resume", "toy", "--from", "first", "stages.first.config.steps=5")
    shown = line.status()
    assert (shown["state"], shown["launcher"]) == ("done", line.cluster.layout.name)


def test_what_waits_for_nodes_says_so_and_interrupting_the_one_who_follows_leaves_it(line: Line) -> None:
    line.cluster.run(
        ["sbatch", "-p", "urgent", "-N", "3", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 300"], check=True
    )
    nap = {"stage": "nap", "config": {"seconds": 1}, "resources": {"hours": 1}}
    process = line.start("launch", line.recipe({"first": nap}), "--on", line.cluster_file)
    said = line.wait(lambda: (line.run_folder / "launch.json").is_file() and line.stage("first")["waiting"])
    logs = line("logs", "toy", "first")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    here = line("cancel", "toy")
    shown = line.status()

    assert said["job_id"].isdigit()
    assert any(word in said["reason"] for word in ("Resources", "Priority", "Slurm has not looked"))
    assert "first is queued: job" in logs.stderr
    assert process.returncode == 130
    assert "the run goes on" in errors
    assert "first: queued: job" in output
    assert "took first out of the queue" in here.stdout
    assert shown["state"] == "cancelled"


def test_a_job_that_somebody_cancels_by_hand_is_told_as_that(line: Line) -> None:
    process = line.start("launch", line.recipe({"first": SLOW, "second": AFTER}), "--on", line.cluster_file)
    line.wait((line.run_folder / "launch.json").is_file)
    line.runs_at("first", 3)
    line.cluster.run(["scancel", line.stage("first")["attempts"][0]["job_id"]], check=True)
    output, _ = process.communicate(timeout=60)
    shown = line.status()

    assert process.returncode == 1, output
    assert [stage["state"] for stage in shown["stages"]] == ["cancelled", "waiting"]
    attempt = shown["stages"][0]["attempts"][-1]
    assert (attempt["cause"], len(attempt["evidence"]) > 0) == ("cancelled", True)
    line.queue_empties()


def test_with_the_controller_away_status_says_so_and_launch_starts_nothing(line: Line) -> None:
    line.launch({"first": SLOW}, "--detach")
    line.runs_at("first", 2)
    line.wait(line.controller_remembers, 30)
    line.cluster.stop_controller()
    try:
        shown = line("status", "toy").stdout
        listed = json.loads(line("runs", "--json").stdout)
        again = line("launch", line.folder / "recipe.yaml", "--on", line.cluster_file, code=3).stderr
        other = line("launch", line.folder / "recipe.yaml", "--on", line.cluster_file, "--name", "other", code=3).stderr
    finally:
        line.cluster.start_controller()
    begun = json.loads((line.folder / "runs" / "other" / "launch.json").read_text(encoding="utf-8"))
    line.wait(lambda: line.cluster.run(["squeue", "-h"]).returncode == 0)
    line("cancel", "toy")
    line.wait(line.over, 30)

    assert "as of " in shown
    assert "Slurm does not answer" in shown
    assert listed[0]["silence"]
    for said in (again, other):
        assert "Slurm does not answer" in said
    assert begun["ended"] is not None
    assert not [name for name in line.jobs() if "other" in name]


def test_interrupting_a_launch_that_submits_says_how_to_go_on_and_loses_nothing(line: Line) -> None:
    slow = Programs(line.folder / "bin")
    slow.does("sbatch", f'sleep 4; exec {shutil.which("sbatch")} "$@"')
    before = dict(line._environment)
    line._environment["PATH"] = f"{slow.folder}:{before['PATH']}"
    process = line.start("launch", line.recipe({"first": {"stage": "count"}}), "--on", line.cluster_file, "--detach")
    line.wait(lambda: bool(slow.calls("sbatch")))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    line._environment = before
    line.wait(line.over, 60)
    shown = line.status()

    assert (process.returncode, "Traceback" in errors) == (130, False), errors
    assert "orch status" in errors
    assert shown["state"] == "done"
    assert len(shown["stages"][0]["attempts"]) == 1


def test_a_node_that_breaks_every_job_is_left_out_and_blamed_once_the_stage_began_elsewhere(line: Line) -> None:
    broken, python = line.folder / "broken", line.folder / "python"
    first_comer = f'mkdir "{broken}" 2> /dev/null && echo "$SLURMD_NODENAME" > "{broken}/node"'
    on_it = f'[ "$(cat "{broken}/node")" = "$SLURMD_NODENAME" ] && exit 1'
    python.write_text(f'#!/bin/sh\n{first_comer}\n{on_it}\nexec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    line.describe(python=str(python), ledger=str(line.folder / "ledger"))
    line.launch({"first": {"stage": "count"}, "second": AFTER}, "--detach")
    line.wait(lambda: line.status()["state"] == "done", 60)
    bad = (broken / "node").read_text(encoding="utf-8").strip()
    attempts = line.stage("first")["attempts"]

    assert [attempt["state"] for attempt in attempts] == ["failed", "done"]
    assert attempts[0]["nodes"] == [bad]
    assert attempts[0]["decision"].startswith(f"again: sent elsewhere, without {bad}")
    assert bad not in attempts[1]["nodes"]
    incidents = Ledger(line.folder / "ledger").incidents()
    assert {(one.node, one.cause) for one in incidents} == {(bad, "unfit")}
    assert len({one.detail for one in incidents}) == len(incidents)  # a job of the second stage may have gone there too


def test_a_job_that_is_held_is_called_so_with_what_to_type(line: Line) -> None:
    line.describe(extra={"hold": True})
    line.launch({"first": {"stage": "count"}}, "--detach")
    waiting = line.stage("first")["waiting"]
    shown = line("status", "toy").stdout
    subprocess.run(["scontrol", "release", waiting["job_id"]], env=line._environment, check=True)
    line.wait(line.over, 30)

    assert waiting["reason"].startswith("held: somebody holds it")
    assert f"scontrol release {waiting['job_id']}" in " ".join(shown.split())
    assert line.status()["state"] == "done"
