"""Attempts, states and the answer of `orch status --json`, from files alone."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts import Report, write_json
from orchestrator.errors import InputError
from orchestrator.journal import Journal
from orchestrator.local import LocalLauncher
from orchestrator.run import Run
from orchestrator.state import (
    Ending,
    Launch,
    close_attempt,
    open_attempt,
    outputs_ready,
    read_plain_stage,
    read_state,
    write_launch,
)
from orchestrator.status import cancel_run, known_runs, latest_run, read_stage, status

HERE = LocalLauncher()


def here(_: Path) -> LocalLauncher:
    return HERE


LAUNCH = Launch(
    recipe="toy", launcher="local", host="here", user="me", started=1.0, pid=os.getpid(),
    stages=({"name": "train", "action": "run", "reason": "has not run yet"},),
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Makes a run of one stage that was launched and not begun."""
    directory = tmp_path / "runs" / "toy"
    stage = directory / "train"
    stage.mkdir(parents=True)
    output = {"model": {"kind": "report", "path": str(stage / "model")}}
    write_json(
        stage / "stage.json",
        {"name": "train", "stage": "count", "fingerprint": "f" * 64, "outputs": output, "steps": 10},
    )
    write_launch(directory, LAUNCH)
    return directory


def begin(run: Path) -> None:
    open_attempt(run / "train", launcher="local", job_id="1", nodes=("here",))


def finish(run: Path) -> None:
    output = Report(run / "train" / "model")
    output.path.mkdir()
    (output.path / "metrics.json").write_text("{}", encoding="ascii")
    output.commit("f" * 64)


def test_an_attempt_knows_the_steps_it_made(run: Path) -> None:
    begin(run)
    journal = Journal(run / "train")
    for step in (1, 2, 3):
        journal.metrics(step, {"loss": 1.0})
    journal.close()
    write_json_folder(run / "train" / "checkpoints" / "step_00000002")
    first = close_attempt(run / "train", Ending(state="failed", cause="code_error", detail="why"))
    begin(run)
    second = close_attempt(run / "train", Ending(state="failed", cause="code_error", detail="why"))

    assert (first.from_step, first.to_step) == (0, 3)
    assert (second.number, second.from_step, second.to_step) == (2, 2, 2)


def test_goodput_counts_what_had_to_be_done_again(run: Path) -> None:
    test_an_attempt_knows_the_steps_it_made(run)

    assert status(run, here)["goodput"]["lost_steps"] == 1
    assert status(run, here)["goodput"]["share"] == pytest.approx(2 / 3)


def test_a_run_whose_supervisor_is_gone_is_closed_by_the_next_who_looks(run: Path) -> None:
    begin(run)
    shown = status(run, here)

    assert shown["state"] == "failed"
    assert shown["stages"][0]["attempts"][0]["detail"] == f"the supervisor process {os.getpid()} on here is gone"
    assert shown["ended"] is not None
    assert status(run, here) == shown


def test_a_supervisor_that_died_after_the_last_write_leaves_a_stage_that_is_done(run: Path) -> None:
    begin(run)
    finish(run)

    assert status(run, here)["state"] == "done"
    assert read_state(run / "train").attempts[0].state == "done"


def test_a_run_somebody_works_on_is_left_alone(run: Path) -> None:
    begin(run)
    with Run(run).lock("test"):
        shown = status(run, here)

    assert (shown["state"], shown["ended"]) == ("running", None)
    assert read_state(run / "train").state == "running"


def test_work_that_somebody_removed_is_not_done_any_more(run: Path) -> None:
    begin(run)
    finish(run)
    close_attempt(run / "train", Ending(state="done"))
    done = status(run, here)["stages"][0]["state"]
    (run / "train" / "model" / "manifest.json").unlink()

    assert (done, status(run, here)["stages"][0]["state"]) == ("done", "waiting")


def test_the_work_of_another_plan_is_not_this_stages_output(run: Path) -> None:
    finish(run)
    document: dict[str, Any] = read_plain_stage(run / "train")

    assert outputs_ready(document)
    assert not outputs_ready({**document, "fingerprint": "0" * 64})


def test_progress_of_an_earlier_attempt_is_not_shown(run: Path) -> None:
    write_json(run / "train" / "progress.json", {"done": 7, "total": 10, "unit": "step", "time": 5.0, "values": {}})
    with Run(run).lock("test"):
        before = status(run, here)["stages"][0]["step"]
        begin(run)
        after = status(run, here)["stages"][0]["step"]

    assert (before, after) == (7, None)


def test_unknown_stages_and_missing_runs_are_named(run: Path) -> None:
    with pytest.raises(InputError, match="has no stage 'tarin'; it has train"):
        read_stage(run, "tarin")
    with pytest.raises(InputError, match="has no stage"):
        cancel_run(run, HERE, "tarin")
    with pytest.raises(InputError, match="there is no run in"):
        latest_run(run / "nothing")


def test_the_latest_run_is_the_one_launched_last(run: Path) -> None:
    other = run.parent / "other"
    other.mkdir()
    write_launch(other, replace(LAUNCH, started=2.0, stages=()))

    assert known_runs(run.parent) == [other, run]


def test_cancelling_what_nobody_works_on_says_so(run: Path) -> None:
    assert "nobody works on" in cancel_run(run, HERE, None)
    assert not (run / "cancel.json").exists()


def test_a_state_file_is_plain_json(run: Path) -> None:
    begin(run)

    document = json.loads((run / "train" / "state.json").read_text(encoding="utf-8"))
    assert document["state"] == "running"
    assert document["attempts"][0]["nodes"] == ["here"]


def write_json_folder(path: Path) -> None:
    path.mkdir(parents=True)
    write_json(path / "manifest.json", {})
