"""Runs on this machine, with real supervisors and real workers."""

import contextlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts import Report
from tests.command_line import alive
from tests.waiting import until


def chain(**count: Any) -> dict[str, Any]:
    return {
        "first": {"stage": "count", "config": count},
        "second": {"stage": "add", "inputs": {"value": "first.value"}, "config": {"amount": 10}},
    }


def value(orch: Any, stage: str) -> Any:
    return json.loads((orch.run_folder / stage / "value" / "value.json").read_text(encoding="utf-8"))


def losses(orch: Any, stage: str) -> list[int]:
    lines = (orch.run_folder / stage / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return [event["step"] for event in map(json.loads, lines) if event["event"] == "metrics"]


def all_that_is_known(run: Path) -> list[str]:
    """Says of a run on a disk of its own what a test that waits in vain should tell."""
    free = shutil.disk_usage(run).free
    files = [*run.glob("logs/*.log"), *run.glob("*/logs/*/*"), *run.glob("*/state.json"), run / "launch.json"]
    ours = [words for words in commands() if str(run).encode() in words]
    return [f"{free} bytes free", *(f"{path}: {path.read_text(errors='replace')[-2000:]}" for path in files), str(ours)]


def commands() -> list[bytes]:
    """Lists the command lines of all processes, with what each waits for in the kernel."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            found.append(
                entry.name.encode() + b" " + (entry / "wchan").read_bytes() + b" " + (entry / "cmdline").read_bytes()
            )
    return found


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"\0" * 65536):
            pass


def test_a_launch_runs_a_chain_to_its_end_and_says_what_to_look_at(orch: Any) -> None:
    shown = orch("launch", orch.recipe(chain(steps=5)))

    assert value(orch, "second") == 15
    assert "first: done" in shown.stdout
    assert "all 2 stages are done" in shown.stdout


def test_outputs_carry_where_they_come_from(orch: Any) -> None:
    orch("launch", orch.recipe(chain()))

    first = json.loads((orch.run_folder / "first" / "value" / "manifest.json").read_text(encoding="utf-8"))
    second = json.loads((orch.run_folder / "second" / "value" / "manifest.json").read_text(encoding="utf-8"))
    assert first["facts"]["counted"] == 5
    assert first["facts"]["stage"] == "count"
    assert second["facts"]["inputs"] == {"value": first["digest"]}
    assert "python" in second["facts"]["versions"]


def test_a_second_launch_reuses_everything(orch: Any) -> None:
    recipe = orch.recipe(chain())
    orch("launch", recipe)
    shown = orch("launch", recipe)

    assert "2 of them reused" in shown.stdout
    assert {stage["state"] for stage in orch.status()["stages"]} == {"reused"}
    assert len(orch.stage("first")["attempts"]) == 1


def test_a_stage_works_with_the_code_of_its_run(orch: Any) -> None:
    orch("launch", orch.recipe(chain()))

    log = (orch.run_folder / "first" / "logs" / "attempt_1" / "rank_0.log").read_text(encoding="utf-8")
    assert (orch.run_folder / "code" / "orchestrator" / "worker.py").is_file()
    assert "first (count) as rank 0 of 1 on cpu" in log


def test_detach_returns_at_once_and_status_watches_to_the_end(orch: Any) -> None:
    launched = orch("launch", orch.recipe(chain(steps=6, pause_s=0.3)), "--detach")
    running = orch.wait(lambda: (s := orch.stage("first"))["state"] == "running" and s)
    shown = orch("status", "toy", "--watch")

    assert "orch status" in launched.stdout
    assert running["steps"] == 6
    assert "first: done" in shown.stdout
    assert orch.status()["state"] == "done"


def test_two_launches_of_one_run_are_refused_with_the_holders_name(orch: Any) -> None:
    recipe = orch.recipe({"first": {"stage": "nap"}})
    orch("launch", recipe, "--detach")
    refused = orch("launch", recipe, code=3)

    assert f"process {orch.supervisor()}" in refused.stderr or str(orch.supervisor()) in refused.stderr
    assert orch.stage("first")["attempts"][0]["number"] == 1


def test_a_worker_killed_from_outside_is_told_and_the_stage_goes_on_by_itself(orch: Any) -> None:
    orch("launch", orch.recipe(chain(steps=8, save_every=2, pause_s=0.2)), "--detach")
    pid = orch.pid("first")
    orch.wait((orch.run_folder / "first" / "checkpoints" / "step_00000004").is_dir)
    os.kill(pid, signal.SIGKILL)
    orch.wait(orch.over)

    first, second = orch.stage("first")["attempts"]
    assert (first["from_step"], first["state"], first["cause"]) == (0, "failed", "unknown")
    assert "SIGKILL" in first["detail"]
    assert "ended by SIGKILL at step" in first["evidence"][0]
    assert first["decision"].startswith("again: unknown: attempt 2 of 3 at step")
    assert second["from_step"] == first["saved_step"] in {4, 6}
    assert (second["to_step"], second["state"]) == (8, "done")
    assert sorted(set(losses(orch, "first"))) == list(range(1, 9))
    assert value(orch, "second") == 18


def test_a_run_that_was_given_up_goes_on_when_a_human_says_so(orch: Any) -> None:
    recipe = orch.recipe(chain(steps=8, save_every=2, pause_s=0.2), retry={"attempts": 1})
    orch("launch", recipe, "--detach")
    pid = orch.pid("first")
    orch.wait((orch.run_folder / "first" / "checkpoints" / "step_00000004").is_dir)
    os.kill(pid, signal.SIGKILL)
    orch.wait(orch.over)
    failed = orch.status()
    resumed = orch("resume", "toy")

    assert failed["state"] == "failed"
    assert "one attempt ended at step" in failed["stages"][0]["attempts"][0]["decision"]
    assert failed["stages"][1]["state"] == "waiting"
    assert "resume at step" in resumed.stdout
    assert value(orch, "second") == 18


def test_a_stage_that_dies_again_and_again_is_given_up_with_every_verdict_in_its_journal(orch: Any) -> None:
    stage = {"stage": "fail", "config": {"how": "exit"}}
    orch("launch", orch.recipe({"first": stage}, retry={"attempts": 3, "delay_s": 0.1}), code=1)

    attempts = orch.stage("first")["attempts"]
    lines = (orch.run_folder / "first" / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    verdicts = [event for event in map(json.loads, lines) if event["event"] == "verdict"]
    assert [attempt["cause"] for attempt in attempts] == ["unknown"] * 3
    assert attempts[-1]["decision"].startswith("not again: 3 attempts ended without a checkpoint")
    assert [(event["attempt"], event["cause"]) for event in verdicts] == [
        (1, "unknown"),
        (2, "unknown"),
        (3, "unknown"),
    ]
    assert all("exit code 9" in event["evidence"][0] for event in verdicts)


def test_a_supervisor_killed_from_outside_takes_its_workers_along_and_is_named(orch: Any) -> None:
    orch("launch", orch.recipe(chain(steps=50, save_every=1, pause_s=0.2)), "--detach")
    worker, supervisor = orch.pid("first"), orch.supervisor()
    orch.wait((orch.run_folder / "first" / "checkpoints" / "step_00000001").is_dir)
    os.kill(supervisor, signal.SIGKILL)
    orch.wait(lambda: not alive(worker))
    shown = orch.status()
    resumed = orch("resume", "toy", "stages.first.config.pause_s=0.0", "--json")

    attempt = shown["stages"][0]["attempts"][0]
    assert (shown["state"], attempt["state"]) == ("failed", "failed")
    assert f"the supervisor process {supervisor} on" in attempt["detail"]
    assert json.loads(resumed.stdout)["state"] == "done"


def test_cancel_lets_a_stage_save_first(orch: Any) -> None:
    orch("launch", orch.recipe(chain(steps=100, save_every=1000, pause_s=0.1)), "--detach")
    orch.wait(lambda: (orch.stage("first")["step"] or 0) >= 2)
    said = orch("cancel", "toy")
    orch.wait(orch.over)

    attempt = orch.stage("first")["attempts"][0]
    assert "asked" in said.stdout
    assert orch.status()["state"] == "cancelled"
    assert (attempt["state"], attempt["cause"]) == ("cancelled", "cancelled")
    assert list((orch.run_folder / "first" / "checkpoints").glob("step_*"))
    assert "nobody works on" in orch("cancel", "toy").stdout


def test_a_supervisor_that_is_asked_to_end_cancels_its_run(orch: Any) -> None:
    orch("launch", orch.recipe({"first": {"stage": "nap"}}), "--detach")
    worker = orch.pid("first")
    os.kill(orch.supervisor(), signal.SIGTERM)
    orch.wait(orch.over)

    assert not alive(worker)
    assert orch.stage("first")["attempts"][0]["detail"] == "the supervisor was told to end (SIGTERM)"


def test_a_stage_that_somebody_asked_to_leave_goes_on_by_itself(orch: Any) -> None:
    orch("launch", orch.recipe(chain(steps=20, save_every=100, pause_s=0.2)), "--detach")
    worker = orch.pid("first")
    orch.wait(lambda: len(losses(orch, "first")) >= 2)  # not by a command: on a busy machine all may be over by then
    os.kill(worker, signal.SIGUSR2)
    orch.wait(orch.over)

    first, second = orch.stage("first")["attempts"]
    assert (first["cause"], first["to_step"]) == ("unknown", second["from_step"])  # it was not orch
    assert orch.status()["state"] == "done"
    assert losses(orch, "first") == list(range(1, 21))


def test_cancel_does_not_wait_for_a_stage_that_never_asks(orch: Any) -> None:
    orch("launch", orch.recipe({"first": {"stage": "nap"}}), "--detach")
    pid = orch.pid("first")
    orch("cancel", "toy", "first")
    orch.wait(orch.over, seconds=10)

    assert not alive(pid)
    assert orch.stage("first")["state"] == "cancelled"


def test_cancel_of_a_later_stage_ends_the_run_there(orch: Any) -> None:
    orch("launch", orch.recipe(chain(steps=8, pause_s=0.2)), "--detach")
    orch.pid("first")
    orch("cancel", "toy", "second")
    orch.wait(orch.over)

    assert [stage["state"] for stage in orch.status()["stages"]] == ["done", "cancelled"]


def test_resume_from_a_stage_redoes_it_and_what_follows_and_keeps_the_old_work(orch: Any) -> None:
    orch("launch", orch.recipe({**chain(), "other": {"stage": "count"}}))
    shown = orch.json("resume", "toy", "--from", "first")

    states = {stage["name"]: stage["state"] for stage in shown["stages"]}
    assert states == {"first": "done", "second": "done", "other": "reused"}
    assert len(list((orch.run_folder / "archive" / "first").iterdir())) == 1


def test_interrupting_the_one_who_follows_leaves_the_run_going(orch: Any) -> None:
    process = orch.start("launch", orch.recipe(chain(steps=10, pause_s=0.3)))
    orch.pid("first")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "the run goes on" in errors
    assert "orch cancel" in errors
    assert "Traceback" not in output + errors
    orch.wait(orch.over)
    assert orch.status()["state"] == "done"


@pytest.mark.parametrize(
    ("how", "cause", "detail"),
    [
        ("error", "code_error", "ValueError: the toy is broken"),
        ("diverged", "diverged", "nan at step 3"),
        ("exit", "unknown", "exit code 9"),
        ("forget", "code_error", "output value"),
    ],
)
def test_a_failure_is_told_with_its_cause(orch: Any, how: str, cause: str, detail: str) -> None:
    stages = {"first": {"stage": "fail", "config": {"how": how}}}
    shown = orch("launch", orch.recipe(stages, retry={"attempts": 1}), code=1)

    attempt = orch.stage("first")["attempts"][0]
    assert attempt["cause"] == cause
    assert detail in attempt["detail"]
    assert f"({cause})" in shown.stdout
    assert "orch resume" in shown.stdout
    assert not (orch.run_folder / "first" / "value" / "manifest.json").exists()


def test_the_traceback_of_a_broken_stage_is_in_its_log_and_at_the_end_of_the_launch(orch: Any) -> None:
    shown = orch("launch", orch.recipe({"first": {"stage": "fail"}}), code=1)

    assert "raise errors[how]" in orch("logs", "toy", "first").stdout
    assert "ValueError: the toy is broken" in shown.stdout


def test_what_a_failed_attempt_left_of_an_output_is_gone_when_the_next_begins(orch: Any) -> None:
    recipe = orch.recipe({"first": {"stage": "fail"}})
    orch("launch", recipe, code=1)
    (orch.run_folder / "first" / "value" / "from_before.json").write_text("{", encoding="ascii")
    orch("resume", "toy", code=1)

    assert [path.name for path in (orch.run_folder / "first" / "value").iterdir()] == ["half.json"]
    assert len(orch.stage("first")["attempts"]) == 2


def test_an_input_damaged_after_planning_stops_the_stage_that_reads_it(orch: Any) -> None:
    other = Report(orch.folder / "other")
    other.path.mkdir()
    (other.path / "value.json").write_text("1", encoding="ascii")
    other.commit("by hand")
    stages = {
        "first": {"stage": "count", "config": {"steps": 5, "pause_s": 0.3}},
        "second": {"stage": "add", "inputs": {"value": str(other.path)}},
    }
    orch("launch", orch.recipe(stages), "--detach")
    orch.pid("first")
    (other.path / "value.json").write_text("12", encoding="ascii")
    orch.wait(orch.over)

    attempt = orch.stage("second")["attempts"][0]
    assert attempt["cause"] == "bad_data"
    assert "value.json has 2 bytes, its manifest says 1" in attempt["detail"]
    assert "Traceback" not in orch("logs", "toy", "second").stdout


@pytest.mark.needs("torch")
@pytest.mark.slow
def test_ranks_find_each_other(orch: Any) -> None:
    orch("launch", orch.recipe({"first": {"stage": "greet", "resources": {"tasks_per_node": 2}}}))

    assert value(orch, "first") == ["0 of 2", "1 of 2"]
    assert "rank 1 of 2" in orch("logs", "toy", "first", "--rank", 1).stdout


@pytest.mark.needs("torch")
@pytest.mark.slow
def test_a_rank_that_fails_is_named_and_its_peers_do_not_wait_for_it(orch: Any) -> None:
    stage = {"stage": "fail", "config": {"how": "rank"}, "resources": {"tasks_per_node": 2}}
    begun = time.monotonic()
    shown = orch("launch", orch.recipe({"first": stage}), code=1)

    attempt = orch.stage("first")["attempts"][0]
    assert attempt["cause"] == "code_error"
    assert attempt["detail"].startswith("rank 1: ValueError: rank 1 has had enough")
    assert "rank 1 has had enough" in orch("logs", "toy", "first").stdout
    assert "rank_1.log" in shown.stdout
    assert time.monotonic() - begun < 40


def test_more_than_this_machine_has_is_refused_before_anything_starts(orch: Any) -> None:
    stages = {"first": {"stage": "count", "resources": {"nodes": 2, "gpus_per_node": 99}}}
    shown = orch("launch", orch.recipe(stages), code=2)

    assert "stages.first.resources.nodes: asks for 2 nodes" in shown.stderr
    assert "stages.first.resources.gpus_per_node: asks for 99 GPUs" in shown.stderr
    assert not orch.run_folder.exists()


def test_a_launch_without_a_tracker_says_nothing_of_mlflow(orch: Any) -> None:
    shown = orch("launch", orch.recipe(chain()))

    assert "mlflow" not in shown.stdout
    assert not Path(orch.folder / "mlflow.db").exists()


@pytest.mark.needs("root")
def test_a_full_disk_is_named_and_can_be_told_while_it_is_full(orch: Any, small_disk: Path) -> None:
    rules = {"runs": str(small_disk), "retry": {"attempts": 1}}
    orch("launch", orch.recipe(chain(steps=1000, save_every=1, pause_s=0.05), **rules), "--detach")
    run = small_disk / "toy"
    orch.wait((run / "first" / "checkpoints" / "step_00000001").is_dir)
    fill(small_disk)
    until(lambda: orch.json("status", run)["ended"], what=lambda: all_that_is_known(run))
    shown = orch.json("status", run)
    refused = orch("launch", orch.folder / "recipe.yaml", code=3)
    (small_disk / "filler").unlink()

    assert shown["stages"][0]["attempts"][0]["cause"] == "disk"
    assert "no space left" in refused.stderr
    assert orch("resume", run, "stages.first.config.steps=3").returncode == 0


@pytest.mark.needs("root")
def test_a_stage_goes_on_by_itself_when_a_full_disk_has_room_again(orch: Any, small_disk: Path) -> None:
    rules = {"runs": str(small_disk), "retry": {"disk_delay_s": 3.0}}
    orch("launch", orch.recipe(chain(steps=60, save_every=1, pause_s=0.05), **rules), "--detach")
    run = small_disk / "toy"
    orch.wait((run / "first" / "checkpoints" / "step_00000001").is_dir)
    fill(small_disk)
    first = orch.wait(lambda: (a := orch.json("status", run)["stages"][0]["attempts"][0])["decision"] and a)
    (small_disk / "filler").unlink()
    orch.wait(lambda: orch.json("status", run)["ended"], seconds=60)

    assert (first["cause"], first["decision"].startswith("again: disk")) == ("disk", True)
    assert orch.json("status", run)["state"] == "done"
