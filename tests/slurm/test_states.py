"""What Slurm's words mean for us."""

from typing import Any

import pytest

from orchestrator.causes import Cause
from slurm.queue import JobFacts
from slurm.states import outside, read_line, state_of

STEPD = "slurmstepd: error: *** {what} ON n2 CANCELLED AT 2026-11-21T14:00:00{why} ***"


def facts(state: str, **more: Any) -> JobFacts:
    return JobFacts(id="7", name="orch-toy-first-0123abcd", state=state, **more)


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("COMPLETED", None),
        ("FAILED", None),
        ("RUNNING", None),
        ("PENDING", None),
        ("CANCELLED", "cancelled"),
        ("CANCELLED by 1234", "cancelled"),
        ("CANCELLED+", "cancelled"),
        ("PREEMPTED", "preempted"),
        ("REQUEUED", "preempted"),
        ("NODE_FAIL", "node_failure"),
        ("BOOT_FAIL", "node_failure"),
        ("NF", "node_failure"),
        ("OUT_OF_MEMORY", "out_of_memory"),
        ("OUT_OF_ME+", None),
        ("OOM", "out_of_memory"),
        ("TIMEOUT", "timeout"),
        ("TO", "timeout"),
        ("DEADLINE", "timeout"),
        ("", None),
    ],
)
def test_a_state_has_a_cause_or_leaves_it_to_the_processes(state: str, cause: Cause | None) -> None:
    found = outside(facts(state))

    assert found.cause == cause
    assert bool(found.detail) == (cause is not None)
    assert "job 7" in found.evidence[0]


@pytest.mark.parametrize(
    ("why", "cause"),
    [
        (" DUE TO TIME LIMIT", "timeout"),
        (" DUE TO PREEMPTION", "preempted"),
        (" DUE TO NODE FAILURE", "node_failure"),
        (" DUE TO JOB REQUEUE", "preempted"),
        (" DUE TO TASK FAILURE", None),
        ("", "cancelled"),
    ],
)
@pytest.mark.parametrize("what", ["JOB 7", "STEP 7.0"])
def test_the_last_words_of_a_step_have_a_cause_without_accounting(what: str, why: str, cause: Cause | None) -> None:
    line = STEPD.format(what=what, why=why)

    assert outside(None, ["step 3", line, "bye"]).cause == cause
    assert outside(facts("FAILED"), [line]).cause == cause
    assert outside(None, [line]).evidence == (line,)


def test_a_line_knows_why_a_job_was_cancelled() -> None:
    line = STEPD.format(what="JOB 7", why=" DUE TO TIME LIMIT")

    assert outside(facts("CANCELLED"), [line]).cause == "timeout"


def test_a_lost_node_explains_a_requeue_and_is_named() -> None:
    lines = [
        "srun: error: Node failure on n3",
        STEPD.format(what="STEP 7.0", why=" DUE TO NODE FAILURE"),
        STEPD.format(what="JOB 7", why=" DUE TO JOB REQUEUE"),
    ]
    found = outside(facts("PENDING"), lines)

    assert (found.cause, found.node) == ("node_failure", "n3")
    assert "n3" in found.detail


def test_a_state_that_says_why_wins_over_the_lines() -> None:
    assert outside(facts("PREEMPTED"), [STEPD.format(what="JOB 7", why="")]).cause == "preempted"


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0. Some of your processes may have been killed",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
        "slurmstepd: error: Exceeded job memory limit at some point.",
    ],
)
def test_memory_that_ran_out_is_heard(line: str) -> None:
    assert outside(facts("FAILED"), [line]).cause == "out_of_memory"


def test_who_cancelled_is_told() -> None:
    assert outside(facts("CANCELLED", reason="by 1000")).detail == "the job was cancelled by user 1000"


def test_a_keeper_that_was_killed_is_unknown_with_its_signal() -> None:
    found = outside(facts("FAILED", exit_code=0, signal=9))

    assert found.cause == "unknown"
    assert "signal 9" in found.detail


def test_nothing_known_is_nothing_said() -> None:
    assert (outside(None).cause, outside(None).evidence) == (None, ())
    assert read_line("step 3 of 10: loss 2.3") is None
    assert read_line("my model prints CANCELLED AT will") is None


def test_short_and_cut_states_are_read() -> None:
    assert state_of("CANCELLED by 0") == state_of("CA") == state_of("cancelled+") == "CANCELLED"
