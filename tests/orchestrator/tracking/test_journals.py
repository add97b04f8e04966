"""Reading the part of a journal that was not delivered."""

import json
from pathlib import Path

import pytest
from mlflow.utils.validation import _validate_metric_name

from orchestrator.journal import Journal
from orchestrator.tracking.journals import POINTS_PER_BATCH, accepted_name, read_batch


def write(directory: Path, first: int, last: int) -> None:
    journal = Journal(directory)
    for step in range(first, last + 1):
        journal.metrics(step, {"loss": float(step)})
    journal.close()


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    line = json.dumps({"event": "metrics", "time": 1.5, "step": 3, "values": {"loss": 0.25}})
    (tmp_path / "journal.jsonl").write_text(line[:20])

    before = read_batch(tmp_path, 0, {})
    (tmp_path / "journal.jsonl").write_text(line + "\n")
    after = read_batch(tmp_path, before.end, {})

    assert (before.end, before.points) == (0, ())
    assert [(point.key, point.value, point.time_ms, point.step) for point in after.points] == [("loss", 0.25, 1500, 3)]


def test_a_line_that_was_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"event": "metr')
    write(tmp_path, 3, 4)

    batch = read_batch(tmp_path, 0, {})

    assert [point.step for point in batch.points] == [1, 2, 3, 4]
    assert batch.end == (tmp_path / "journal.jsonl").stat().st_size


def test_steps_that_a_resumed_attempt_repeats_are_counted_and_left_out(tmp_path: Path) -> None:
    write(tmp_path, 1, 5)
    write(tmp_path, 4, 7)

    batch = read_batch(tmp_path, 0, {})

    assert [point.step for point in batch.points] == [1, 2, 3, 4, 5, 6, 7]
    assert batch.redone == 2


def test_a_long_journal_comes_in_batches_without_a_gap(tmp_path: Path) -> None:
    write(tmp_path, 1, 2 * POINTS_PER_BATCH + 7)
    steps: list[int] = []
    offset, last_steps = 0, {}

    while (batch := read_batch(tmp_path, offset, last_steps)).end > offset:
        steps += [point.step for point in batch.points]
        offset, last_steps = batch.end, dict(batch.last_steps)
        assert len(batch.points) <= POINTS_PER_BATCH

    assert steps == list(range(1, 2 * POINTS_PER_BATCH + 8))


def test_not_a_number_is_a_number_and_text_is_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics(1, {"loss": float("nan"), "lr": 0.1})
    journal.append("metrics", step=1, values={"note": "text", "none": None})
    journal.close()

    assert [point.key for point in read_batch(tmp_path, 0, {}).points] == ["loss", "lr"]


def test_names_become_names_that_mlflow_takes() -> None:
    assert accepted_name("loss/mask BCE (mean)") == "loss/mask BCE _mean_"
    assert len(accepted_name("x" * 300)) == 250


@pytest.mark.parametrize(
    "name", ["https://host/a", "/a//b/./c/../", "../a", "..", "..a", "a/", " ", "", "x" * 249 + "/y"]
)
def test_no_name_leads_out_of_the_place_that_mlflow_keeps_it_in(name: str) -> None:
    taken = accepted_name(name)

    _validate_metric_name(taken)  # raises if MLflow does not take it
    assert 0 < len(taken) <= 250


def test_the_loss_of_every_step_is_a_curve_of_its_own(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step in (1, 2):
        journal.append("loss", step=step, value=0.5 / step)
    journal.close()

    points = read_batch(tmp_path, 0, {}).points

    assert [(point.key, point.step, point.value) for point in points] == [
        ("loss_every_step", 1, 0.5),
        ("loss_every_step", 2, 0.25),
    ]
