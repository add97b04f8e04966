"""What follows an attempt."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.artifacts import write_json
from orchestrator.causes import Cause
from orchestrator.retry import Decision, RetryPolicy, attempts_of, conclude, decide, policy_of, tell_verdict
from orchestrator.state import Attempt, Ending, StageState, open_attempt, read_state
from orchestrator.typed import plain

CAUSES: tuple[Cause, ...] = get_args(Cause)


def attempt(
    cause: Cause,
    *,
    since: int | None = 0,
    reached: int | None = None,
    saved: int | None = 0,
    node: str | None = "n1",
    number: int = 1,
) -> Attempt:
    return Attempt(
        number=number, launcher="local", job_id="1", nodes=("n1",), started=0.0, ended=1.0, state="failed", cause=cause,
        from_step=since, to_step=saved if reached is None else reached, saved_step=saved, node=node,
    )  # fmt: skip


def after(*attempts: Attempt, policy: RetryPolicy | None = None) -> Decision:
    return decide(attempts, policy or RetryPolicy())


def test_preemption_is_free_however_often_it_comes_if_something_was_saved_each_time() -> None:
    decision = after(*[attempt("preempted", since=step, saved=step + 1) for step in range(50)])

    assert (decision.again, decision.place, decision.delay_s) == (True, "same", 0.0)


@pytest.mark.parametrize("step", [0, 40, None])
def test_who_is_always_preempted_before_anything_is_saved_is_not_for_ever(step: int | None) -> None:
    free = attempt("preempted", since=step, saved=step)
    between = attempt("unknown", since=step, saved=step)

    assert after(*[free] * 19).again
    assert after(*[free] * 10, between, *[free] * 9).again
    decision = after(*[free] * 10, between, *[free] * 10)
    assert not decision.again
    assert "preempted 20 times" in decision.why
    assert not after(*[free] * 2, policy=RetryPolicy(preemptions=2)).again


@pytest.mark.parametrize("cause", RetryPolicy().never)
def test_what_would_happen_again_is_not_tried_again(cause: Cause) -> None:
    decision = after(attempt(cause, saved=100))

    assert not decision.again
    assert decision.why.startswith(f"{cause}: ")
    assert len(decision.why) > len(cause) + 10


def test_a_timeout_that_saved_something_goes_on_and_one_that_did_not_ends_it() -> None:
    assert after(*[attempt("timeout", since=step, saved=step + 10) for step in range(0, 200, 10)]).again
    assert not after(attempt("timeout", since=10, reached=15, saved=10)).again
    assert "more hours" in after(attempt("timeout", since=10, reached=15, saved=10)).why


def test_a_timeout_that_came_before_the_first_step_is_tried_again_and_at_last_asks_for_more_hours() -> None:
    """Slurm may tell a job up to a minute early: at its start, if it is short."""
    begun, early = attempt("timeout", since=0, saved=10), attempt("timeout", since=10, saved=10)

    assert after(begun, early).again
    assert not after(begun, early, early).again
    assert "more hours" in after(begun, early, early).why


def test_a_stage_without_steps_may_time_out_as_often_as_it_may_fail() -> None:
    assert after(*[attempt("timeout", since=None, saved=None)] * 2).again
    assert not after(*[attempt("timeout", since=None, saved=None)] * 3).again


@pytest.mark.parametrize("cause", ["node_failure", "communication"])
def test_a_node_that_failed_is_left_out(cause: Cause) -> None:
    decision = after(attempt(cause, node="n7"))

    assert (decision.again, decision.place, decision.exclude) == (True, "other", ("n7",))
    assert "without n7" in decision.why


def test_a_hang_is_tried_again_in_place_and_without_the_node_if_it_repeats_there() -> None:
    once, twice = attempt("hang", node="n2"), attempt("hang", node="n3")

    assert (after(once).place, after(once).exclude) == ("same", ())
    assert after(twice, once).exclude == ()
    assert (after(once, once).place, after(once, once).exclude) == ("other", ("n2",))


def test_a_rank_killed_from_outside_is_tried_again_at_once() -> None:
    assert (after(attempt("unknown")).again, after(attempt("unknown")).delay_s) == (True, 0.0)


def test_delays_grow_to_a_limit() -> None:
    policy = RetryPolicy(attempts=20, delay_s=2.0, disk_delay_s=8.0, most_delay_s=30.0)
    unknown = [after(*[attempt("unknown")] * count, policy=policy).delay_s for count in range(1, 8)]
    disk = [after(*[attempt("disk")] * count, policy=policy).delay_s for count in range(1, 5)]

    assert unknown == [0.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert disk == [8.0, 16.0, 30.0, 30.0]


def test_where_there_is_only_one_machine_no_node_is_left_out() -> None:
    decision = decide([attempt("node_failure")], RetryPolicy(), elsewhere=False)

    assert (decision.again, decision.place, decision.exclude) == (True, "same", ())


def test_a_recipe_may_say_otherwise() -> None:
    policy = RetryPolicy(never=("hang",), exclude=("unknown",))

    assert not after(attempt("hang"), policy=policy).again
    assert "retry.never" in after(attempt("hang"), policy=policy).why
    assert after(attempt("out_of_memory"), policy=policy).again
    assert after(attempt("unknown", node="n4"), policy=policy).exclude == ("n4",)


def test_only_the_attempts_of_the_latest_launch_count() -> None:
    state = StageState(state="failed", attempts=tuple(attempt("unknown", number=number) for number in (1, 2, 3)))

    assert [each.number for each in attempts_of(state, {"earlier_attempts": 2})] == [3]
    assert decide(attempts_of(state, {"earlier_attempts": 2}), RetryPolicy()).again
    assert not decide(attempts_of(state, {}), RetryPolicy()).again


def test_a_policy_comes_back_from_a_stage_document_as_it_was() -> None:
    policy = RetryPolicy(attempts=7, never=("diverged",), delay_s=0.5)
    document = json.loads(json.dumps({"retry": plain(policy)}))

    assert policy_of(document) == policy
    assert policy_of({}) == RetryPolicy()


def opened(folder: Path) -> Attempt:
    (folder / "stage.json").write_text("{}", encoding="utf-8")
    return open_attempt(folder, launcher="local", job_id="1", nodes=("n1",))


def test_who_is_killed_as_soon_as_it_has_written_a_verdict_has_decided_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(tmp_path)

    def write_and_die(path: Path, plain: Any) -> None:
        write_json(path, plain)
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.state.write_json", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        conclude(tmp_path, first.number, Ending(state="failed", cause="communication"), {}, again="queued")

    state = read_state(tmp_path)
    assert (state.state, state.attempts[0].state) == ("queued", "failed")
    assert state.attempts[0].decision.startswith("again: communication")


def test_an_attempt_is_ended_by_its_number_and_never_another(tmp_path: Path) -> None:
    first = opened(tmp_path)
    second = opened(tmp_path)

    closed, _ = conclude(tmp_path, first.number, Ending(state="failed", cause="unknown"), {}, again="queued")

    assert read_state(tmp_path).attempts == (closed, second)


def test_what_was_cancelled_is_not_tried_again_whatever_the_recipe_says(tmp_path: Path) -> None:
    cancelled = replace(attempt("cancelled"), state="cancelled")

    assert not after(cancelled, policy=RetryPolicy(never=())).again


def test_verdict_and_decision_are_in_the_journal(tmp_path: Path) -> None:
    tell_verdict(tmp_path, attempt("hang", saved=40), Decision(again=True, why="hang: attempt 2 of 3 at step 40"))

    event = json.loads((tmp_path / "journal.jsonl").read_text(encoding="utf-8"))
    assert (event["event"], event["cause"], event["step"]) == ("verdict", "hang", 40)
    assert event["decision"] == "again: hang: attempt 2 of 3 at step 40"


@st.composite
def histories(draw: st.DrawFn) -> list[Attempt]:
    saved, found = draw(st.sampled_from([0, None])), []
    for number in range(1, draw(st.integers(1, 12)) + 1):
        since = saved
        saved = None if saved is None else saved + draw(st.sampled_from([0, 0, 5]))
        cause, node = draw(st.sampled_from(CAUSES)), draw(st.sampled_from(["n1", "n2", None]))
        found.append(attempt(cause, since=since, saved=saved, node=node, number=number))
    return found


@given(histories())
def test_a_decision_always_says_why_and_never_tries_what_the_policy_forbids(attempts: list[Attempt]) -> None:
    policy = RetryPolicy()
    decision = decide(attempts, policy)

    assert decision.why
    assert not (decision.again and attempts[-1].cause in policy.never)
    assert (decision.place == "other") == bool(decision.exclude)
    assert 0 <= decision.delay_s <= policy.most_delay_s
    assert set(decision.exclude) <= {attempts[-1].node}
    assert decision == decide(attempts, policy)


@given(st.lists(st.sampled_from(CAUSES), min_size=1, max_size=60), st.integers(1, 5), st.sampled_from([0, None]))
def test_without_progress_no_stage_is_tried_more_often_than_the_policy_allows(
    causes: list[Cause], most: int, step: int | None
) -> None:
    policy, attempts = RetryPolicy(attempts=most), list[Attempt]()
    for cause in causes:
        attempts.append(attempt(cause, since=step, saved=step))
        if not decide(attempts, policy).again:
            break

    assert sum(each.cause != "preempted" for each in attempts) <= most
    assert sum(each.cause == "preempted" for each in attempts) <= policy.preemptions


@given(st.lists(st.sampled_from([c for c in CAUSES if c not in RetryPolicy().never]), min_size=1, max_size=40))
def test_as_long_as_every_attempt_saves_something_new_it_goes_on(causes: list[Cause]) -> None:
    attempts = [attempt(cause, since=step, saved=step + 1) for step, cause in enumerate(causes)]

    assert decide(attempts, RetryPolicy()).again
