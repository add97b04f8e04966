"""What the benchmarks on Slurm compute from what they measure."""

from datetime import datetime
from pathlib import Path

import pytest
import yaml

from benchmarks.goodput import resubmissions
from benchmarks.handover import added, gaps, write_chain
from orchestrator.state import Attempt
from slurm.drill.trace import Execution, Trace

DAY = "2026-11-21T10:00:"


def moment(second: int) -> float:
    return datetime.fromisoformat(f"{DAY}{second:02d}").astimezone().timestamp()


def attempt(number: int, started: int, ended: int) -> Attempt:
    return Attempt(
        number=number, launcher="t", job_id="7", nodes=("n1",), started=moment(started), ended=moment(ended)
    )  # fmt: skip


def execution(submit: int, start: int, end: int) -> Execution:
    return Execution(
        job_id="7", name="orch-a-train-01", state="REQUEUED", submit=f"{DAY}{submit:02d}", start=f"{DAY}{start:02d}",
        end=f"{DAY}{end:02d}",
    )  # fmt: skip


def trace(*attempts: Attempt) -> Trace:
    return Trace(steps=(), attempts=attempts, damage=(), result=None)


def test_within_an_allocation_the_next_attempt_is_the_resubmission() -> None:
    waits = resubmissions(trace(attempt(1, 2, 10), attempt(2, 13, 40)), [execution(0, 1, 41)])

    assert waits == [(3.0, 3.0)]


def test_of_a_requeued_job_the_requeue_counts_not_the_delay_after_it() -> None:
    waits = resubmissions(trace(attempt(1, 2, 10), attempt(2, 30, 40)), [execution(0, 1, 11), execution(12, 29, 41)])

    assert waits == [(2.0, 20.0)]


def test_a_node_that_slurm_gave_up_is_noticed_when_slurm_says_so() -> None:
    late = attempt(1, 2, 28)  # closed by the next keeper only

    waits = resubmissions(trace(late, attempt(2, 30, 40)), [execution(0, 1, 15), execution(16, 29, 41)])

    assert waits == [(1.0, 15.0)]


def test_gaps_lie_between_last_and_first_lines(tmp_path: Path) -> None:
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    logs[0].write_text("2026-11-21 10:00:00,100 alone INFO: began\nnoise\n2026-11-21 10:00:01,000 alone INFO: done\n")
    logs[1].write_text("noise\n2026-11-21 10:00:02,250 alone INFO: began\n")

    assert gaps(logs) == [pytest.approx(1.25)]


def test_a_second_more_than_bare_holds_and_two_do_not() -> None:
    assert added("a", [2.0], [1.0], "sbatch", "")["holds"] is True
    assert added("a", [3.1], [1.0], "sbatch", "")["holds"] is False


def test_every_link_of_a_chain_waits_for_the_one_before(tmp_path: Path) -> None:
    recipe = yaml.safe_load(write_chain(tmp_path / "r.yaml", "chain", 3).read_text(encoding="utf-8"))

    inputs = [stage.get("inputs") for stage in recipe["stages"].values()]
    assert inputs == [None, {"before": "link_0000.shards"}, {"before": "link_0001.shards"}]
