"""Jobs that never came to their keeper: sent elsewhere a few times, a node blamed once the stage began on another."""

from pathlib import Path

import pytest

from orchestrator.state import read_state
from slurm.cluster import Cluster
from slurm.controller import Controller
from slurm.ledger import Ledger
from tests.slurm.toyslurm import ToySlurm, settle, submit, toy_run, work_through


@pytest.fixture
def slurm(tmp_path: Path) -> ToySlurm:
    toy_run(tmp_path / "toy", {"data": [], "train": ["data"]})
    slurm = ToySlurm(tmp_path / "toy")
    submit(slurm.run, slurm)
    return slurm


def latest(slurm: ToySlurm) -> str:
    return max((number for number in slurm.jobs if slurm.stage(number) == "data"), key=int)


def test_a_job_that_a_node_breaks_is_sent_elsewhere_and_the_chain_goes_on(slurm: ToySlurm) -> None:
    slurm.break_on("1", "n3")

    ran = work_through(slurm.run, slurm)

    assert slurm.excluded[slurm.asked.index("data", 1)] == ("n3",)
    assert ran == {"data": 1, "train": 1}
    first = read_state(slurm.run / "data").attempts[0]
    assert first.decision.startswith("again: sent elsewhere, without n3")
    assert "1_0_log.err" in first.detail
    assert slurm.told == []


def test_the_node_is_blamed_once_another_one_has_begun_the_stage_and_not_before(slurm: ToySlurm) -> None:
    slurm.break_on("1", "n3")
    settle(slurm.run, slurm)
    before = set(slurm.blamed)
    slurm.begin(latest(slurm))  # on n1

    settle(slurm.run, slurm)

    assert (before, slurm.blamed) == (set(), {"n3"})


def test_a_job_that_begins_nowhere_fails_its_stage_blames_no_node_and_somebody_hears_of_it(slurm: ToySlurm) -> None:
    for number in range(1, 9):
        if slurm.jobs[latest(slurm)].state == "PENDING":
            slurm.break_on(latest(slurm), f"n{number}")
        _, alive = settle(slurm.run, slurm)

    attempts = read_state(slurm.run / "data").attempts
    assert slurm.asked.count("data") == 4
    assert slurm.excluded[-1] == ("n1", "n2", "n3")
    assert [attempt.nodes for attempt in attempts] == [("n1",), ("n2",), ("n3",), ("n4",)]
    assert attempts[-1].decision.startswith("not again: 4 jobs could not begin, on n1, n2, n3, n4")
    assert (alive, read_state(slurm.run / "data").state) == (False, "failed")
    assert (slurm.blamed, slurm.told) == (set(), ["data"])


def test_a_settler_that_is_killed_before_it_sends_again_leaves_no_second_attempt(slurm: ToySlurm) -> None:
    slurm.break_on("1", "n3")
    slurm.room = 0  # the attempt is noted, and nothing can be sent
    settle(slurm.run, slurm)
    settle(slurm.run, slurm)
    slurm.room = None

    assert len(read_state(slurm.run / "data").attempts) == 1


def test_somebody_hears_of_a_stage_that_fails_without_a_keeper(slurm: ToySlurm) -> None:
    for _ in range(4):
        for job_id in slurm.ready():
            if slurm.begin(job_id):
                slurm.lose(job_id)
        settle(slurm.run, slurm)

    assert slurm.told == ["data"]


def test_without_accounts_a_waiting_job_that_vanished_is_not_asked_for_again(slurm: ToySlurm) -> None:
    slurm.accounting = False
    slurm.forget("1")

    _, alive = settle(slurm.run, slurm)

    last = read_state(slurm.run / "data").attempts[-1]
    assert slurm.asked.count("data") == 1
    assert not alive
    assert "job 1 left the queue" in last.detail
    assert last.detail.endswith("orch resume toy")


def test_without_accounts_a_job_that_slurm_took_out_with_its_parent_is_asked_for_again(slurm: ToySlurm) -> None:
    slurm.accounting = False
    slurm.begin("1")
    slurm.lose("1")
    slurm.ready()  # takes its follower out
    slurm.forget("2")

    assert work_through(slurm.run, slurm) == {"data": 1, "train": 1}


def test_a_node_is_noted_once_for_one_job(tmp_path: Path) -> None:
    cluster = Cluster(name="toy", ledger=tmp_path / "ledger")

    for _ in range(3):
        Controller(cluster).blame("n3", "job 1 ended before its keeper could begin", run="toy")

    assert [(one.node, one.cause) for one in Ledger(tmp_path / "ledger").incidents()] == [("n3", "unfit")]
