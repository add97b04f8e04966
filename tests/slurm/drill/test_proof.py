"""The proof sees what was lost, repeated, reordered or submitted twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.journal import Journal
from orchestrator.state import Attempt
from slurm.drill.proof import damage_differences, differences, duplicates, overlaps
from slurm.drill.trace import Execution, Step, Trace, read_trace

RESULT = {"weights": {"weight": "00ff"}}


def step(number: int, *keys: str, attempt: int = 1, loss: float | None = None) -> Step:
    return Step(
        number=number, loss=1 / number if loss is None else loss, keys=keys, attempt=attempt, time=float(number)
    )


def attempt(number: int, started: float, ended: float | None) -> Attempt:
    return Attempt(number=number, launcher="t", job_id="1", nodes=("n1",), started=started, ended=ended)


def trace(*steps: Step, **changes: Any) -> Trace:
    usual: dict[str, Any] = {"attempts": (attempt(1, 0, 9),), "damage": (), "result": RESULT}
    return Trace(steps=steps, **{**usual, **changes})


def execution(name: str, job: str, start: str, end: str) -> Execution:
    day = "2026-11-21T"
    return Execution(job_id=job, name=name, state="COMPLETED", submit=day + start, start=day + start, end=day + end)


CALM = trace(step(1, "a", "b"), step(2, "c", "d"))


def test_a_run_that_did_a_step_again_is_equal_and_has_lost_that_step() -> None:
    again = trace(
        step(1, "a", "b"),
        step(2, "c", "d"),
        step(2, "c", "d", attempt=2),
        attempts=(attempt(1, 0, 2), attempt(2, 3, 9)),
    )

    assert differences(CALM, again) == []
    assert again.lost_steps() == 1


def test_reordered_samples_show_even_where_the_loss_is_the_same() -> None:
    assert differences(CALM, trace(step(1, "b", "a"), step(2, "c", "d"))) == ["other samples in steps [1] (1 in all)"]


def test_another_loss_shows_to_the_last_bit() -> None:
    (found,) = differences(CALM, trace(step(1, "a", "b"), step(2, "c", "d", loss=0.5 + 1e-16 * 2)))

    assert found.startswith("another loss in 1 of 2 steps, first in step 2")


def test_a_missing_step_other_weights_and_no_result_show() -> None:
    assert differences(CALM, trace(step(1, "a", "b"))) == ["steps differ: [2] missing, [] too many"]
    assert differences(CALM, replace(CALM, result={"weights": {}})) == ["the final weights differ"]
    assert differences(CALM, replace(CALM, result=None)) == ["the stage after the training has left no result"]


def test_attempts_at_the_same_time_show() -> None:
    assert overlaps(replace(CALM, attempts=(attempt(1, 0, 5), attempt(2, 4, 9)))) == ["attempts 1 and 2 overlap"]
    assert overlaps(replace(CALM, attempts=(attempt(1, 0, 4), attempt(2, 4, 9)))) == []


def test_an_attempt_that_goes_on_beside_its_successor_shows() -> None:
    steps = (step(1), step(1, attempt=2), step(2, attempt=1))

    assert overlaps(trace(*steps)) == ["an earlier attempt went on after a later one had begun"]


def test_replaced_samples_must_have_been_named() -> None:
    named = ({"key": "b", "tar": "shard-000000.tar"},)
    replaced = trace(step(1, "a", "z"), step(2, "c", "d"), damage=named)

    assert damage_differences(CALM, replaced) == []
    assert damage_differences(CALM, replace(replaced, damage=())) == [
        "no sample was named as lost",
        "step 1: b replaced, but not named as lost",
    ]
    assert damage_differences(CALM, replace(CALM, damage=named)) == ["step 1: b named as lost, but used"]


def test_a_requeued_job_is_no_duplicate() -> None:
    name = "orch-x-train-00000001"

    assert (
        duplicates([execution(name, "7", "10:00:00", "10:01:00"), execution(name, "7", "10:01:05", "10:02:00")]) == []
    )


def test_two_jobs_of_one_submission_and_two_at_a_time_are_duplicates() -> None:
    twice = [
        execution("orch-x-train-01", "7", "10:00:00", "10:01:00"),
        execution("orch-x-train-01", "8", "10:02:00", "10:03:00"),
    ]
    beside = [
        execution("orch-x-train-01", "7", "10:00:00", "10:02:00"),
        execution("orch-x-train-02", "8", "10:01:00", "10:03:00"),
    ]

    assert duplicates(twice) == ["orch-x-train-01: submitted 2 times (7, 8)"]
    assert duplicates(beside) == ["orch-x-train: jobs 7 and 8 ran at the same time"]


def test_what_a_killed_attempt_had_begun_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    journal = Journal(tmp_path / "train")
    journal.append("attempt", number=1)
    journal.append("samples", keys=["a", "b"])
    journal.append("samples", keys=["c"])
    journal.append("loss", step=1, value=0.5)
    journal.append("samples", keys=["d"])  # killed before the end of the step
    journal.append("attempt", number=2)
    journal.append("samples", keys=["d", "e", "f"])
    journal.append("loss", step=2, value=0.25)
    journal.close()

    found = read_trace(tmp_path)

    assert [(one.number, one.loss, one.keys, one.attempt) for one in found.steps] == [
        (1, 0.5, ("a", "b", "c"), 1),
        (2, 0.25, ("d", "e", "f"), 2),
    ]
