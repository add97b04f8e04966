"""What becomes of a chain whoever dies: nothing is lost, nothing runs twice. On a toy Slurm, in any order of events."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import InputError
from orchestrator.progress import PROGRESS
from orchestrator.state import Ending, close_attempt, read_state
from orchestrator.wishes import ask_to_cancel
from slurm import submissions
from slurm.asking import SlurmAway
from slurm.queue import FORGOTTEN, Survey
from tests.slurm.toyslurm import Killed, ToySlurm, read, settle, submit, toy_run, work_through

CHAIN = {"data": [], "train": ["data"], "score": ["train"]}


def states(run: Path) -> dict[str, str]:
    return {name: read_state(run / name).state for name in CHAIN}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "toy"
    toy_run(run, CHAIN)
    return run


@pytest.fixture
def slurm(run: Path) -> ToySlurm:
    return ToySlurm(run)


def test_a_chain_is_submitted_up_front_each_stage_after_those_it_reads_from(run: Path, slurm: ToySlurm) -> None:
    submit(run, slurm)

    assert slurm.after == {"1": (), "2": ("1",), "3": ("2",)}
    assert states(run) == dict.fromkeys(CHAIN, "queued")


def test_settling_what_is_as_it_should_be_changes_nothing(run: Path, slurm: ToySlurm) -> None:
    submit(run, slurm)
    before = [read(run / name / "slurm" / "submission.json") for name in CHAIN]

    waiting, alive = settle(run, slurm)

    assert before == [read(run / name / "slurm" / "submission.json") for name in CHAIN]
    assert alive
    assert [found.job_id for found in waiting.values()] == ["1", "2", "3"]
    assert waiting["score"].reason == "it waits for train"


@pytest.mark.parametrize("fate", ["killed before", "killed after", "late"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_launch_that_is_killed_while_it_submits_is_finished_by_whoever_looks_next(
    run: Path, slurm: ToySlurm, fate: str, at: int
) -> None:
    slurm.fate = lambda: fate if len(slurm.asked) == at else "taken"
    with pytest.raises(Killed):
        submit(run, slurm)
    slurm.fate = lambda: "taken"

    ran = work_through(run, slurm)

    assert ran == dict.fromkeys(CHAIN, 1)
    assert states(run) == dict.fromkeys(CHAIN, "done")


def test_a_job_that_reaches_slurm_after_it_was_given_up_is_cancelled_or_leaves_at_once(
    run: Path, slurm: ToySlurm
) -> None:
    slurm.fate = lambda: "late"
    with pytest.raises(Killed):
        submit(run, slurm)
    slurm.fate = lambda: "taken"
    settle(run, slurm)
    slurm.arrive()
    stray = max(slurm.jobs, key=int)

    began = slurm.begin(stray)

    assert not began
    assert work_through(run, slurm) == dict.fromkeys(CHAIN, 1)


def test_a_stray_that_waits_is_cancelled_by_whoever_looks(run: Path, slurm: ToySlurm) -> None:
    slurm.fate = lambda: "late"
    with pytest.raises(Killed):
        submit(run, slurm)
    slurm.fate = lambda: "taken"
    settle(run, slurm)
    slurm.arrive()

    settle(run, slurm)

    assert slurm.jobs[max(slurm.jobs, key=int)].state == "CANCELLED"


def test_a_stage_that_slurm_refuses_takes_the_others_out_of_the_queue(run: Path, slurm: ToySlurm) -> None:
    slurm.refused = {"score"}

    with pytest.raises(InputError, match=r"stages\.score: .*Invalid partition"):
        submit(run, slurm)

    assert {job.state for job in slurm.jobs.values()} == {"CANCELLED"}
    assert states(run) == {"data": "waiting", "train": "waiting", "score": "failed"}
    assert read_state(run / "score").attempts[-1].cause == "bad_config"


def test_a_refusal_while_settling_blocks_the_stage_and_is_not_asked_again(run: Path, slurm: ToySlurm) -> None:
    slurm.fate = lambda: "killed before" if len(slurm.asked) == 2 else "taken"
    with pytest.raises(Killed):
        submit(run, slurm)
    slurm.refused = {"score"}
    slurm.fate = lambda: "taken"

    for _ in range(3):
        settle(run, slurm)

    assert slurm.asked.count("score") == 1
    assert read_state(run / "score").state == "failed"


def test_a_stage_that_never_had_its_turn_waits_when_the_one_before_it_fails(run: Path, slurm: ToySlurm) -> None:
    slurm.fate = lambda: "killed after"
    with pytest.raises(Killed):
        submit(run, slurm)
    slurm.end("1", "CANCELLED", "by 0")

    _, alive = settle(run, slurm)

    assert not alive
    assert states(run) == {"data": "cancelled", "train": "waiting", "score": "waiting"}


def test_a_lost_node_is_closed_with_its_cause_and_the_stage_is_asked_for_again(run: Path, slurm: ToySlurm) -> None:
    submit(run, slurm)
    slurm.begin("1")
    slurm.lose("1")

    settle(run, slurm)

    attempt = read_state(run / "data").attempts[-1]
    assert (attempt.state, attempt.cause) == ("failed", "node_failure")
    assert attempt.decision.startswith("again")
    assert read_state(run / "data").state == "queued"
    ran = work_through(run, slurm)
    assert ran == dict.fromkeys(CHAIN, 1)


def test_a_job_that_begins_again_while_somebody_settles_keeps_its_attempt(run: Path, slurm: ToySlurm) -> None:
    submit(run, slurm)
    slurm.begin("1")
    slurm.queue_again("1")
    survey = slurm.find

    def find_and_begin(names: Sequence[str], *, since: float, uid: int) -> Survey:
        found = survey(names, since=since, uid=uid)
        close_attempt(run / "data", Ending(state="failed", cause="node_failure"))
        slurm.begin("1")
        return found

    slurm.find = find_and_begin  # type: ignore[method-assign] # what is seen is old by the time it is acted on

    settle(run, slurm)

    assert read_state(run / "data").state == "running"
    assert [attempt.ended is None for attempt in read_state(run / "data").attempts] == [False, True]
    assert slurm.jobs["1"].state == "RUNNING"


def test_the_attempt_of_a_job_that_slurm_queued_again_is_closed_once(run: Path, slurm: ToySlurm) -> None:
    submit(run, slurm)
    slurm.begin("1")
    slurm.queue_again("1")

    settle(run, slurm)
    settle(run, slurm)

    assert read_state(run / "data").state == "queued"
    assert [attempt.ended is None for attempt in read_state(run / "data").attempts] == [False]
    assert work_through(run, slurm) == dict.fromkeys(CHAIN, 1)


def test_a_lost_node_is_not_believed_while_only_accounting_answers(run: Path, slurm: ToySlurm) -> None:
    submit(run, slurm)
    slurm.begin("1")
    slurm.lose("1")
    slurm.controller = False  # it may have queued the job again since, and the job may run

    _, alive = settle(run, slurm)

    assert alive
    assert read_state(run / "data").state == "running"
    assert slurm.asked.count("data") == 1


def test_a_launch_is_not_over_before_its_last_keeper_has_said_what_became_of_it(run: Path, slurm: ToySlurm) -> None:
    submit(run, slurm)
    for job_id in ("1", "2"):
        slurm.begin(job_id)
        slurm.finish(job_id)
    slurm.begin("3")
    slurm.write_outputs("3")

    _, alive = settle(run, slurm)
    before = states(run)["score"]
    slurm.say_done("3")
    _, alive_after = settle(run, slurm)

    assert (alive, before) == (True, "running")
    assert (alive_after, states(run)["score"]) == (False, "done")


def test_slurm_is_not_asked_for_stages_that_are_done(run: Path, slurm: ToySlurm) -> None:
    submit(run, slurm)
    slurm.begin("1")
    slurm.finish("1")

    settle(run, slurm)

    assert [name.split("-")[-2] for name in slurm.asked_for] == ["train", "score"]


@pytest.mark.parametrize("well", [True, False])
def test_a_parent_that_ends_and_is_forgotten_while_others_are_submitted_is_not_waited_for(
    tmp_path: Path, *, well: bool
) -> None:
    toy_run(tmp_path / "wide", {"data": [], "other": [], "train": ["data"]})
    slurm = ToySlurm(tmp_path / "wide")

    def end_the_first() -> str:
        if len(slurm.asked) == 2:
            slurm.begin("1")
            slurm.finish("1") if well else slurm.lose("1")
            slurm.forget("1")
        return "taken"

    slurm.fate = end_the_first
    submit(slurm.run, slurm)

    ran = work_through(slurm.run, slurm)

    assert ran == {"other": 1, "train": 1} | ({} if well else {"data": 1})


@pytest.mark.parametrize("accounted", [True, False])
def test_a_job_that_slurm_forgot_is_not_asked_for_again_while_its_ranks_still_work(
    run: Path, slurm: ToySlurm, *, accounted: bool
) -> None:
    submit(run, slurm)
    slurm.begin("1")
    slurm.end("1", FORGOTTEN) if accounted else slurm.forget("1")
    progress = run / "data" / PROGRESS
    progress.touch()

    settle(run, slurm)
    meanwhile = dict(slurm.jobs)
    os.utime(progress, (time.time() - 60,) * 2)
    settle(run, slurm)

    assert "4" not in meanwhile
    assert set(slurm.jobs) - set(meanwhile) == {"4"}
    assert slurm.stage("4") == "data"


@pytest.mark.parametrize("accounted", [True, False])
def test_followers_of_a_forgotten_job_are_held_back_until_it_has_another(
    run: Path, slurm: ToySlurm, *, accounted: bool
) -> None:
    slurm.accounting = accounted
    submit(run, slurm)
    slurm.begin("1")
    slurm.forget("1")
    slurm.forget("2")  # with it, and the one behind it is still there
    slurm.jobs["3"] = replace(slurm.jobs["3"], reason="DependencyNeverSatisfied")
    progress = run / "data" / PROGRESS
    progress.touch()

    settle(run, slurm)
    meanwhile = (set(slurm.jobs), slurm.after["3"], slurm.asked[3:])
    os.utime(progress, (time.time() - 60,) * 2)
    settle(run, slurm)

    assert meanwhile == ({"3"}, ("2",), [])
    assert slurm.after == {"1": (), "2": ("1",), "3": ("5",), "4": (), "5": ("4",)}
    assert work_through(run, slurm)["score"] == 1


def test_followers_wait_for_the_new_job_of_a_stage_that_was_asked_for_again(run: Path, slurm: ToySlurm) -> None:
    submit(run, slurm)
    slurm.begin("1")
    slurm.lose("1")

    settle(run, slurm)

    again = read(run / "data" / "slurm" / "submission.json")["job_id"]
    assert slurm.after["2"] == (again,)


def test_a_stage_that_fails_at_the_same_step_again_and_again_is_given_up(run: Path, slurm: ToySlurm) -> None:
    submit(run, slurm)

    for _ in range(6):
        for job_id in slurm.ready():
            if slurm.begin(job_id):
                slurm.lose(job_id)
        _, alive = settle(run, slurm)

    assert not alive
    assert len(read_state(run / "data").attempts) == 3
    assert states(run) == {"data": "failed", "train": "waiting", "score": "waiting"}


def test_a_job_that_was_cancelled_by_hand_shows_who_did_it(run: Path, slurm: ToySlurm) -> None:
    submit(run, slurm)
    slurm.end("1", "CANCELLED", "by 0")

    _, alive = settle(run, slurm)

    assert not alive
    assert states(run) == {"data": "cancelled", "train": "waiting", "score": "waiting"}
    assert "root" in read_state(run / "data").attempts[-1].detail


def test_a_running_job_that_an_administrator_cancelled_is_not_started_again(run: Path, slurm: ToySlurm) -> None:
    submit(run, slurm)
    slurm.begin("1")
    slurm.end("1", "CANCELLED", "by 0")

    _, alive = settle(run, slurm)

    assert not alive
    assert read_state(run / "data").state == "cancelled"


@pytest.mark.parametrize("reason", ["Dependency", "None"])  # Slurm gives none for a job that came after the failure
def test_followers_that_slurm_removed_are_asked_for_again_once_their_parent_is(
    run: Path, slurm: ToySlurm, reason: str
) -> None:
    submit(run, slurm)
    slurm.begin("1")
    slurm.lose("1")
    slurm.ready()  # kills the followers, as --kill-on-invalid-dep does
    slurm.jobs["2"] = replace(slurm.jobs["2"], reason=reason)
    settle(run, slurm)

    assert work_through(run, slurm) == dict.fromkeys(CHAIN, 1)


def test_a_wish_to_cancel_takes_waiting_stages_out_of_the_queue(run: Path, slurm: ToySlurm) -> None:
    submit(run, slurm)
    slurm.begin("1")
    ask_to_cancel(run, "train", "ada")

    settle(run, slurm)

    assert [slurm.jobs[number].state for number in ("1", "2", "3")] == ["RUNNING", "CANCELLED", "CANCELLED"]
    assert states(run) == {"data": "running", "train": "cancelled", "score": "waiting"}
    assert read_state(run / "train").attempts[-1].detail == "cancelled by ada"


def test_a_keeper_that_breaks_before_its_first_attempt_is_not_asked_for_for_ever(run: Path, slurm: ToySlurm) -> None:
    submit(run, slurm)
    found = submissions.read_submission(run / "data")
    assert found is not None
    submissions.claim(run / "data", found.token, "1")
    (run / "data" / "slurm" / "1_submitted.pkl").touch()
    slurm.end("1", "FAILED")

    settle(run, slurm)

    assert slurm.asked.count("data") == 1
    assert "1_0_log.err" in read_state(run / "data").attempts[-1].detail


def test_jobs_that_slurm_loses_before_they_begin_are_asked_for_again_a_few_times_only(
    run: Path, slurm: ToySlurm
) -> None:
    submit(run, slurm)

    for _ in range(10):
        for job_id in slurm.ready():
            slurm.end(job_id, "NODE_FAIL")
        settle(run, slurm)

    assert slurm.asked.count("data") == 5
    assert read_state(run / "data").state == "failed"


def test_when_slurm_does_not_answer_nothing_is_changed(run: Path, slurm: ToySlurm) -> None:
    submit(run, slurm)
    slurm.answers = False

    with pytest.raises(SlurmAway):
        settle(run, slurm)

    assert states(run) == dict.fromkeys(CHAIN, "queued")


def test_a_chain_that_slurm_stopped_answering_for_is_finished_later(run: Path, slurm: ToySlurm) -> None:
    slurm.fate = lambda: "away" if len(slurm.asked) == 2 else "taken"
    with pytest.raises(SlurmAway):
        submit(run, slurm)
    slurm.fate = lambda: "taken"

    assert work_through(run, slurm) == dict.fromkeys(CHAIN, 1)


def test_a_chain_that_is_longer_than_the_queue_goes_in_as_there_is_room(
    run: Path, slurm: ToySlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.room = 1
    with pytest.raises(SlurmAway):
        submit(run, slurm)

    for _ in range(20):
        _, alive = settle(run, slurm)
    asked_at_leisure = slurm.asked.count("train")
    names = slurm.asked_for
    monkeypatch.setattr(submissions, "FULL_S", 0.0)
    ran = work_through(run, slurm)

    assert alive
    assert asked_at_leisure == 1
    assert len(names) == 1  # what Slurm refused cannot have a job
    assert ran == dict.fromkeys(CHAIN, 1)


def test_two_jobs_of_one_submission_cannot_both_begin(run: Path, slurm: ToySlurm) -> None:
    submit(run, slurm)
    found = submissions.read_submission(run / "data")
    assert found is not None

    claims = [submissions.claim(run / "data", found.token, job_id) for job_id in ("1", "99", "1")]

    assert claims == [1, 0, 2]  # a job that was queued again is still the same job
