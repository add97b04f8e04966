"""Attempts, states and the answer of `orch status --json`, from files alone."""

import io
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.artifacts import Report, write_json
from orchestrator.display import standing_lines, status_table
from orchestrator.errors import InputError, SurroundingsError
from orchestrator.journal import Journal
from orchestrator.launcher import Waiting
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
    write_state,
)
from orchestrator.status import Observer, cancel_run, known_runs, latest_run, read_stage, status, statuses

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


def test_a_stage_whose_folder_somebody_took_away_waits_and_hides_nothing_of_the_others(run: Path) -> None:
    begin(run)
    finish(run)
    close_attempt(run / "train", Ending(state="done"))
    shutil.rmtree(run / "train")

    (stage,) = status(run, here)["stages"]

    assert (stage["state"], stage["fingerprint"], stage["outputs"]) == ("waiting", None, {})


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


class Queue(LocalLauncher):
    """A launcher that says what a test lets it say."""

    def __init__(self) -> None:
        self.waiting: dict[str, Waiting] = {}
        self.error: Exception | None = None
        self.asked = 0

    def settle(self, directory: Path) -> Mapping[str, Waiting]:  # noqa: ARG002 - as the protocol has it
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.waiting


def waiting(reason: str = "it waits for free nodes (Resources)", start: float | None = None) -> dict[str, Waiting]:
    return {"train": Waiting(job_id="12", reason=reason, estimated_start=start, state="PENDING")}


def observer(run: Path, queue: Queue, *, every_s: float = 0) -> Observer:
    return Observer(run, lambda _: queue, ask_every_s=every_s)


def test_a_stage_in_the_queue_says_why_and_until_when(run: Path) -> None:
    queue = Queue()
    queue.waiting = waiting(start=4e9)
    shown = observer(run, queue).look()
    (line,) = standing_lines(shown)

    assert (shown["state"], shown["stages"][0]["state"]) == ("queued", "queued")
    assert shown["stages"][0]["waiting"] == {
        "job_id": "12", "reason": "it waits for free nodes (Resources)", "estimated_start": 4e9, "state": "PENDING",
    }  # fmt: skip
    assert line.startswith("train: job 12: it waits for free nodes (Resources); begins about 2096-")


def test_a_stage_that_was_queued_again_shows_what_ended_it(run: Path) -> None:
    begin(run)
    ending = Ending(
        state="failed", cause="node_failure", detail="n2 is gone", evidence=("sacct: NODE_FAIL",), rank=3, node="n2"
    )
    close_attempt(run / "train", ending, decision="again: without n2")
    queue = Queue()
    queue.waiting = waiting()
    shown = observer(run, queue).look()
    lines = "\n".join(standing_lines(shown))

    assert shown["state"] == "queued"
    for words in ("failed (node_failure)", "n2 is gone", "because: sacct: NODE_FAIL", "so: again: without n2"):
        assert words in lines


def test_a_queue_is_asked_now_and_then_only(run: Path) -> None:
    queue = Queue()
    watching = observer(run, queue, every_s=1000)
    for _ in range(20):
        watching.look()
        watching.stage("train")
    seldom, queue.asked = queue.asked, 0
    watching = observer(run, queue, every_s=0.01)
    watching.look()
    time.sleep(0.02)
    watching.look()

    assert (seldom, queue.asked) == (1, 2)


def test_a_queue_that_does_not_answer_is_named_and_the_folder_still_read(run: Path) -> None:
    begin(run)
    write_json(run / "train" / "progress.json", {"done": 7, "total": 10, "unit": "step", "time": 5e9, "values": {}})
    queue = Queue()
    queue.error = SurroundingsError("Slurm does not answer: squeue: Connection refused")
    shown = observer(run, queue).look()

    assert (shown["state"], shown["stages"][0]["step"]) == ("running", 7)
    assert re.fullmatch(
        r"as of \d\d:\d\d:\d\d; Slurm does not answer: squeue: Connection refused", next(standing_lines(shown))
    )


def test_what_was_last_heard_is_shown_while_nobody_answers(run: Path) -> None:
    queue = Queue()
    queue.waiting = waiting()
    watching = observer(run, queue)
    heard = watching.look()["as_of"]
    queue.error = SurroundingsError("Slurm does not answer")
    shown = watching.look()

    assert (shown["state"], shown["as_of"], shown["silence"]) == ("queued", heard, "Slurm does not answer")


def test_a_cluster_file_that_cannot_be_read_hides_nothing(run: Path) -> None:
    def nowhere(_: Path) -> LocalLauncher:
        raise InputError("cluster.yaml: 'partitoin' is not known")

    assert "partitoin" in Observer(run, nowhere).look()["silence"]


def test_times_of_a_host_whose_clock_is_ahead_are_borne(run: Path) -> None:
    begin(run)
    state = read_state(run / "train")
    ahead = replace(state.attempts[0], started=time.time() + 3600)
    write_state(run / "train", replace(state, attempts=(ahead,)))
    shown = observer(run, Queue()).look()
    console = Console(width=200, file=io.StringIO())
    console.print(status_table(shown))

    assert shown["goodput"]["busy_s"] == 0
    assert "-" not in console.file.getvalue()  # type: ignore[attr-defined] # it is the StringIO of two lines above


def test_nothing_is_asked_of_a_run_that_has_ended(run: Path) -> None:
    write_launch(run, replace(LAUNCH, ended=2.0))
    queue = Queue()

    assert observer(run, queue).look()["silence"] is None
    assert queue.asked == 0


def test_a_launcher_that_is_silent_about_one_run_is_not_asked_about_the_next(run: Path) -> None:
    queue = Queue()
    queue.error = SurroundingsError("Slurm does not answer")
    shown = statuses([run, run, run], lambda _: queue)

    assert [one["silence"] for one in shown] == ["Slurm does not answer"] * 3
    assert queue.asked == 1
