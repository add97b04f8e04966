"""Where the hours went: every second of an attempt is in one class, and what is done again is found."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import goodput
from orchestrator.artifacts import write_json
from orchestrator.costs import spending_in_words, spending_table
from orchestrator.goodput import CLASSES, Books, spending
from orchestrator.state import Attempt, Launch, StageState, write_launch, write_state
from orchestrator.tally import Tally

Events = Sequence[tuple[float, str, dict[str, Any]]]

FIRST: Events = (
    (110.0, "attempt", {"number": 1, "ranks": 8}),
    (120.0, "begun", {"step": 0}),
    (130.0, "loss", {"step": 1, "value": 1.0, "data_wait_s": 2.0}),
    (140.0, "loss", {"step": 2, "value": 1.0, "data_wait_s": 0.0}),
    (145.0, "stood_still", {"step": 2, "seconds": 5.0}),
    (155.0, "loss", {"step": 3, "value": 1.0, "data_wait_s": 1.0}),
)
SECOND: Events = (
    (205.0, "attempt", {"number": 2, "ranks": 8}),
    (215.0, "begun", {"step": 2}),
    (225.0, "loss", {"step": 3, "value": 1.0, "data_wait_s": 0.0}),
    (235.0, "loss", {"step": 4, "value": 1.0, "data_wait_s": 0.0}),
    (241.0, "stood_still", {"step": 4, "seconds": 5.0}),
)


def attempt(number: int, started: float, ended: float | None, state: Any, **more: Any) -> Attempt:
    return Attempt(
        number=number, launcher=more.pop("launcher", "big"), job_id="7", nodes=("n1", "n2"), started=started,
        ended=ended, state=state, **more,
    )  # fmt: skip


LOST = attempt(
    1, 100.0, 170.0, "failed", cause="node_failure", from_step=0, to_step=3, saved_step=2, decision="again: elsewhere"
)  # fmt: skip
DONE = attempt(2, 200.0, 250.0, "done", from_step=2, to_step=4, saved_step=4)


def journal(folder: Path, *parts: Events) -> None:
    with (folder / "journal.jsonl").open("a", encoding="utf-8") as file:
        for time, event, fields in (one for part in parts for one in part):
            file.write(json.dumps({"event": event, "time": time, **fields}) + "\n")


def make_run(
    directory: Path, attempts: Sequence[Attempt], *, steps: int | None = 4, gpus: int = 4, kind: str = "checkpoint",
    name: str = "train",
) -> Path:  # fmt: skip
    """Makes a run of one stage on two nodes; returns the stage's folder."""
    folder = directory / name
    folder.mkdir(parents=True)
    document = {
        "name": name, "stage": "toy", "fingerprint": "f", "steps": steps, "after": [], "earlier_attempts": 0,
        "resources": {"nodes": 2, "gpus_per_node": gpus, "tasks_per_node": None},
        "outputs": {"model": {"kind": kind, "path": str(folder / "model")}},
    }  # fmt: skip
    write_json(folder / "stage.json", document)
    write_state(folder, StageState(state=attempts[-1].state, attempts=tuple(attempts)))
    stages = ({"name": name, "action": "run", "reason": ""},)
    write_launch(directory, Launch(recipe="toy", launcher="big", host="h", user="u", started=90.0, stages=stages))
    return folder


def seconds(part: goodput.Spending) -> dict[str, float]:
    return {name: value for name, value in part.seconds.items() if value}


def test_every_second_of_an_attempt_is_in_one_class(tmp_path: Path) -> None:
    journal(make_run(tmp_path, [LOST, DONE]), FIRST, SECOND)
    first, second = spending(tmp_path).parts[0].parts

    assert seconds(first) == {
        "queue": 10, "startup": 20, "productive": 18, "data_wait": 2, "checkpoint": 5, "redone": 10, "idle": 15,
    }  # fmt: skip
    assert seconds(second) == {"queue": 30, "startup": 15, "productive": 21, "checkpoint": 5, "idle": 9}


def test_hours_are_those_of_all_gpus_and_the_queue_is_not_paid_for(tmp_path: Path) -> None:
    journal(make_run(tmp_path, [LOST, DONE]), FIRST, SECOND)
    spent = spending(tmp_path)

    assert (spent.unit, spent.hours["startup"]) == ("GPU", pytest.approx(35 * 8 / 3600))
    assert spent.held_hours == pytest.approx((70 + 50) * 8 / 3600)
    assert spent.useful == pytest.approx(39 / 120)


def test_what_an_attempt_has_not_saved_is_lost_when_it_ends_and_not_before(tmp_path: Path) -> None:
    running = attempt(1, 100.0, None, "running", from_step=0)
    journal(make_run(tmp_path / "running", [running]), FIRST)
    journal(make_run(tmp_path / "ended", [LOST]), FIRST)

    assert [spending(tmp_path / name).seconds["redone"] for name in ("running", "ended")] == [0, 10]


def test_a_training_that_goes_back_by_itself_has_done_steps_again(tmp_path: Path) -> None:
    back: Events = ((165.0, "loss", {"step": 2, "value": 1.0, "data_wait_s": 0.0}),)
    journal(make_run(tmp_path, [attempt(1, 100.0, 165.0, "done")]), FIRST, back)

    assert spending(tmp_path).seconds["redone"] == 20


def test_going_back_to_a_checkpoint_and_steps_in_vain_are_no_start_up(tmp_path: Path) -> None:
    back: Events = (
        (160.0, "left_out", {"step": 4, "policy": "roll_back"}),
        (168.0, "begun", {"step": 2}),
        (178.0, "loss", {"step": 3, "value": 1.0, "norm": 0.5, "data_wait_s": 0.0}),
    )
    journal(make_run(tmp_path, [attempt(1, 100.0, 178.0, "done")]), FIRST, back)

    assert seconds(spending(tmp_path)) == {
        "queue": 10, "startup": 20, "productive": 28, "data_wait": 2, "checkpoint": 5, "redone": 10 + 5 + 8,
    }  # fmt: skip


def test_the_rank_that_waits_longest_for_data_decides(tmp_path: Path) -> None:
    line: Events = ((156.0, "metrics", {"step": 3, "values": {"loss": 1.0, "data_wait_s": 4.0}}),)
    journal(make_run(tmp_path, [attempt(1, 100.0, 155.0, "done")]), FIRST, line)

    assert spending(tmp_path).seconds["data_wait"] == 2 + 4  # of the window before the save, and of the one after it


def test_a_step_that_waits_for_its_copy_stands_still_for_a_checkpoint(tmp_path: Path) -> None:
    step: Events = ((165.0, "loss", {"step": 4, "value": 1.0, "data_wait_s": 1.0, "save_wait_s": 3.0}),)
    journal(make_run(tmp_path, [attempt(1, 100.0, 165.0, "done")]), FIRST, step)

    assert spending(tmp_path).seconds["checkpoint"] == 5 + 3
    assert spending(tmp_path).seconds["productive"] == 18 + 9 + 6


def test_what_only_writes_reports_is_evaluation_and_nobody_knows_what_a_failed_one_kept(tmp_path: Path) -> None:
    events: Events = ((110.0, "attempt", {"number": 1, "ranks": 2}),)
    ends: dict[str, Any] = {"done": "done", "failed": "failed"}
    for name, state in ends.items():
        made = make_run(tmp_path / name, [attempt(1, 100.0, 150.0, state)], steps=None, kind="report", gpus=0)
        journal(made, events)
    done, failed = (spending(tmp_path / name) for name in ends)

    assert seconds(done) == {"queue": 10, "startup": 10, "evaluation": 40}
    assert seconds(failed) == {"queue": 10, "startup": 10, "unknown": 40}
    assert (done.unit, done.held_hours) == ("process", pytest.approx(2 * 50 / 3600))


def test_an_attempt_that_came_to_no_step_was_all_start_up(tmp_path: Path) -> None:
    make_run(tmp_path, [attempt(1, 100.0, 160.0, "failed", saved_step=0)])

    assert seconds(spending(tmp_path)) == {"queue": 10, "startup": 60}


def test_a_stage_that_journals_metrics_only_has_steps_too(tmp_path: Path) -> None:
    events: Events = tuple((110.0 + at, "metrics", {"step": at, "values": {"loss": 1.0}}) for at in range(1, 6))
    journal(make_run(tmp_path, [attempt(1, 100.0, 115.0, "done")]), events)

    assert seconds(spending(tmp_path)) == {"queue": 10, "startup": 11, "productive": 4}


def test_on_this_machine_nothing_waits_in_a_queue_but_between_two_tries(tmp_path: Path) -> None:
    first = attempt(1, 100.0, 160.0, "failed", launcher="local", saved_step=0, decision="again: hang")
    second = attempt(2, 165.0, 170.0, "failed", launcher="local", saved_step=0)
    make_run(tmp_path, [first, second])

    assert spending(tmp_path).seconds["queue"] == 5


def test_a_person_who_waits_before_going_on_is_no_queue(tmp_path: Path) -> None:
    first = attempt(1, 100.0, 160.0, "cancelled", saved_step=0, decision="not again: cancelled")
    make_run(tmp_path, [first, attempt(2, 5000.0, 5001.0, "failed", saved_step=0)])

    assert spending(tmp_path).seconds["queue"] == 10  # of the first


def test_an_attempt_that_is_done_and_said_nothing_is_unknown(tmp_path: Path) -> None:
    make_run(tmp_path, [attempt(1, 100.0, 160.0, "done")])

    assert seconds(spending(tmp_path)) == {"queue": 10, "unknown": 60}


def test_what_is_over_is_added_up_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path, [LOST, DONE])
    journal(folder, FIRST, SECOND)
    first = spending(tmp_path)
    kept = json.loads((folder / goodput.KEPT).read_text(encoding="utf-8"))
    kept["spending"]["seconds"]["idle"] = 77.0
    write_json(folder / goodput.KEPT, kept)
    again = spending(tmp_path)
    journal(folder, ((251.0, "verdict", {"attempt": 2}),))

    assert again.seconds["idle"] == 77.0
    assert spending(tmp_path) == first  # the journal has grown: what was kept does not count


def test_books_read_on_where_they_were(tmp_path: Path) -> None:
    running = attempt(2, 200.0, None, "running", from_step=2)
    folder, books = make_run(tmp_path, [LOST, running]), Books(tmp_path)
    journal(folder, FIRST, SECOND[:3])
    before = books.read()
    journal(folder, SECOND[3:])

    assert books.read() == spending(tmp_path)
    assert books.read().seconds["productive"] > before.seconds["productive"]


def test_a_launch_counts_only_its_own_queue(tmp_path: Path) -> None:
    folder = make_run(tmp_path, [LOST, DONE])
    document = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    write_json(folder / "stage.json", document | {"earlier_attempts": 1})
    launch = Launch(
        recipe="toy", launcher="big", host="h", user="u", started=195.0, stages=({"name": "train", "action": "run"},)
    )
    write_launch(tmp_path, launch)

    assert spending(tmp_path).seconds["queue"] == 5


def test_words_and_table_name_what_was_spent(tmp_path: Path) -> None:
    journal(make_run(tmp_path, [LOST, DONE]), FIRST, SECOND)
    spent = spending(tmp_path)

    assert spending_in_words(spent).startswith("0.267 GPU-hours: 32% productive, 29% start-up, 20% idle, 8% re-done")
    assert spending_in_words(spent).endswith("0.0889 in the queue")
    assert spending_table(spent).row_count == 4  # the stage, its two attempts, all


def test_lines_that_say_nothing_are_passed_over() -> None:
    tally = Tally({1: 0.0})
    for line in (
        b"",
        b"{",
        b'{"event": "loss"',
        b'{"event": "loss", "time": null}',
        b'{"event": "stood_still", "time": 3}',
    ):
        tally.take(line)

    assert tally.kept(1) == (0, 0, 0)


Story = list[tuple[str, float, int, float]]


@given(
    story=st.lists(
        st.tuples(
            st.sampled_from(["attempt", "begun", "left_out", "loss", "metrics", "stood_still"]),
            st.floats(-5, 50), st.integers(0, 9), st.floats(0, 60),
        ),
        max_size=30,
    ),
    saved=st.one_of(st.none(), st.integers(0, 9)),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_whatever_a_journal_says_no_second_is_lost_or_counted_twice(
    tmp_path_factory: pytest.TempPathFactory, story: Story, saved: int | None
) -> None:
    folder = tmp_path_factory.mktemp("run")
    events, time, number = [], 100.0, 0
    for event, step_s, step, value in story:
        time, number = time + step_s, number + (event == "attempt")
        values = {"data_wait_s": value} if event == "metrics" else {}
        waits = {"seconds": value, "data_wait_s": value, "save_wait_s": value / 2}
        fields = {"number": min(number, 2), "step": step, "values": values, **waits}
        events.append((time, event, fields))
    first = attempt(1, 90.0, 200.0, "failed", saved_step=saved)
    second = attempt(2, 210.0, 900.0, "failed", saved_step=saved)
    journal(make_run(folder, [first, second]), events)

    for part, lasted_s in zip(spending(folder).parts[0].parts, (110, 690), strict=True):
        assert sum(part.seconds.values()) - part.seconds["queue"] == pytest.approx(lasted_s)
        assert all(value >= 0 for value in part.seconds.values())
        assert set(part.seconds) == set(CLASSES)


def test_its_json_is_plain(tmp_path: Path) -> None:
    journal(make_run(tmp_path, [LOST, DONE]), FIRST, SECOND)
    plain = spending(tmp_path).plain()

    assert json.loads(json.dumps(plain)) == plain
    assert set(plain) == {"unit", "held_hours", "useful", "hours", "seconds"}
