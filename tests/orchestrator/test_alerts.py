"""Rules of a recipe: what breaks them, that it is told once an episode, and that telling harms nobody."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from orchestrator.alerts import Alerts, Rules, alerts_of
from orchestrator.artifacts import write_json
from orchestrator.errors import RecipeError
from orchestrator.journal import Journal
from orchestrator.notify import Notify
from orchestrator.recipe import load_recipe
from orchestrator.state import Attempt, Launch, StageState, write_launch, write_state
from orchestrator.vigil import ALERTS, Vigil, read_alerts
from tests.listener import SECRET, Listener


def broken(rules: Rules, rates: Sequence[float]) -> list[bool]:
    """Returns, for each log line, whether throughput is too low by then."""
    events = [{"event": "metrics", "step": at, "values": {"samples_per_s": rate}} for at, rate in enumerate(rates)]
    return [any(judgement.broken for judgement in rules.hear(event)) for event in events]


def test_throughput_is_compared_with_the_attempts_own_median_and_chance_does_not_count() -> None:
    rules = Rules(Alerts(throughput_drop=0.2))

    assert broken(rules, [100] * 6 + [10, 100, 75, 75]) == [False] * 10  # never three in a row
    assert broken(rules, [75, 79]) == [True, True]
    assert broken(rules, [81]) == [False]


def test_a_median_needs_a_few_lines_and_a_long_drop_does_not_become_usual() -> None:
    rules = Rules(Alerts(throughput_drop=0.2))

    assert broken(rules, [100, 1, 1, 1]) == [False] * 4
    rules = Rules(Alerts(throughput_drop=0.2))
    assert broken(rules, [100] * 5 + [50] * 2000)[-1]


def test_a_loss_that_is_no_number_is_found_in_the_step_itself() -> None:
    rules = Rules(Alerts(loss_nan=True))
    values = [1.0, math.nan, -math.inf, 1.0]
    judged = [next(rules.hear({"event": "loss", "step": at, "value": value})) for at, value in enumerate(values)]

    assert [judgement.broken for judgement in judged] == [False, True, True, False]
    assert judged[1].words == "the loss of step 1 is nan (alerts.loss_nan is true)"


def test_a_step_that_was_left_out_or_ended_training_counts_if_it_was_no_number() -> None:
    rules = Rules(Alerts(loss_nan=True))
    told = ["the loss of step 3 is not finite on rank 1", "the loss of step 3 is 9, 12.0 robust standard deviations"]
    left_out = [list(rules.hear({"event": "left_out", "step": 3, "why": why})) for why in told]
    ended = [list(rules.judge_end("diverged", f"{why}; no weight was updated")) for why in told]

    assert [bool(judged) for judged in (*left_out, *ended)] == [True, False, True, False]


def test_silence_is_measured_on_the_clock_of_whoever_asks() -> None:
    rules = Rules(Alerts(no_step_minutes=2.0))
    looks = [(1, 0.0), (1, 119.0), (1, 121.0), (2, 130.0), (10, 131.0), (10, 999.0)]
    judged = [
        any(judgement.broken for judgement in rules.look({"done": done, "total": 10, "unit": "step"}, now_s))
        for done, now_s in looks
    ]

    assert judged == [False, False, True, False, False, False]  # after the last step nothing more is to come


def test_without_rules_nothing_is_judged() -> None:
    rules = Rules(Alerts())

    assert not list(rules.hear({"event": "loss", "step": 1, "value": math.nan}))
    assert not list(rules.look({"done": 1}, 0.0))
    assert not list(rules.judge_goodput(0.0))
    assert not list(rules.judge_end("diverged", ""))
    assert not Alerts().any()


@pytest.mark.parametrize(
    ("written", "key", "words"),
    [
        ({"throughput_drop": 20}, "alerts.throughput_drop", "must be a share between 0 and 1 (0.2 = 20 %), or null"),
        ({"goodput_under": 1}, "alerts.goodput_under", "must be a share between 0 and 1 (0.2 = 20 %), or null, not 1"),
        ({"no_step_minutes": -1}, "alerts.no_step_minutes", "must be above 0, or null, not -1"),
        ({"loss_nan": "maybe"}, "alerts.loss_nan", "'maybe' is not true or false"),
        ({"loss_nam": True}, "alerts.loss_nam", "loss_nan"),
    ],
)  # fmt: skip
def test_a_rule_that_is_none_is_refused_before_anything_starts(
    tmp_path: Path, written: dict[str, Any], key: str, words: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"name": "toy", "alerts": written, "stages": {"a": {"stage": "b"}}}), encoding="utf-8")
    with pytest.raises(RecipeError) as refused:
        load_recipe(recipe)

    (fault,) = refused.value.faults
    assert fault.key == key
    assert words in fault.message


def test_rules_can_be_overridden_and_reach_the_stage(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"name": "toy", "stages": {"a": {"stage": "b"}}}), encoding="utf-8")
    loaded = load_recipe(recipe, ["alerts.throughput_drop=0.3"])

    assert loaded.alerts == Alerts(throughput_drop=0.3)
    assert alerts_of({"alerts": asdict(loaded.alerts)}) == loaded.alerts
    assert alerts_of({}) == Alerts()


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


STARTED = 100.0
RUNNING = Attempt(number=1, launcher="local", job_id="1", nodes=("here",), started=STARTED)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Makes a run with one stage at work, whose recipe has every rule and tells the webhook."""
    directory = tmp_path / "runs" / "toy"
    stage = directory / "train"
    stage.mkdir(parents=True)
    rules = Alerts(loss_nan=True, throughput_drop=0.2, no_step_minutes=5.0, goodput_under=0.5)
    document = {
        "name": "train",
        "stage": "toy",
        "fingerprint": "f",
        "outputs": {},
        "steps": 10,
        "alerts": asdict(rules),
    }
    write_json(stage / "stage.json", document)
    write_state(stage, StageState(state="running", attempts=(RUNNING,)))
    notify = asdict(Notify(webhook_env="TOY_WEBHOOK", events=("alert",)))
    stages = ({"name": "train", "action": "run", "reason": ""},)
    write_launch(
        directory,
        Launch(recipe="toy", launcher="local", host="h", user="u", started=90.0, stages=stages, notify=notify),
    )
    return directory


def write(run: Path, loss: float) -> None:
    journal = Journal(run / "train")
    journal.append("loss", step=3, value=loss)
    journal.close()


def vigil(run: Path, clock: Clock) -> Vigil:
    made = Vigil(run, "train", clock=clock, every_s=0)
    made.begin(1)
    return made


def test_an_episode_is_told_once_with_what_was_seen_and_the_next_one_again(run: Path, listener: Listener) -> None:
    watching = vigil(run, Clock())
    for value in (1.0, math.nan, math.nan, 1.0, math.inf):
        write(run, value)
        watching.tick()
    watching.wait(5.0)

    assert [message["event"] for message in listener.heard] == ["alert", "alert"]
    first = min(listener.heard, key=lambda message: message["time"])  # each is sent by a thread of its own
    assert (first["run"], first["stage"], first["rule"]) == (str(run), "train", "loss_nan")
    assert first["text"] == "toy/train raises an alert (loss_nan: the loss of step 3 is nan (alerts.loss_nan is true))"
    assert [told["state"] for told in read_alerts(run / "train")] == ["begun", "over", "begun"]


def test_value_and_threshold_are_told(run: Path, listener: Listener) -> None:
    journal, watching = Journal(run / "train"), vigil(run, Clock())
    for rate in (100, 100, 100, 100, 100, 60, 60, 60, 60):
        journal.metrics(1, {"samples_per_s": rate})
    journal.close()
    watching.tick()
    watching.wait(5.0)

    (message,) = listener.heard
    assert (message["rule"], message["value"], message["threshold"]) == ("throughput_drop", pytest.approx(0.4), 0.2)


def test_a_stage_that_stands_still_is_told_of(run: Path, listener: Listener) -> None:
    clock = Clock()
    watching = vigil(run, clock)
    progress = {"done": 4, "total": 10, "unit": "step", "time": time.time() + 1}
    write_json(run / "train" / "progress.json", progress)
    for minutes in (0, 4, 2, 60):
        clock.now_s += minutes * 60
        watching.tick()
    write_json(run / "train" / "progress.json", progress | {"done": 5})
    watching.tick()
    watching.wait(5.0)

    (message,) = listener.heard
    assert (message["rule"], message["value"]) == ("no_step_minutes", 6.0)
    assert "no step for 6 minutes, the last was 4" in message["text"]
    assert [told["state"] for told in read_alerts(run / "train")] == ["begun", "over"]


def test_the_end_of_an_attempt_is_judged_and_a_goodput_that_stays_low_is_told_once(
    run: Path, listener: Listener
) -> None:
    for number in (1, 2):
        watching = Vigil(run, "train", clock=Clock())  # as another job would, after the first was queued again
        watching.begin(number)
        ended = Attempt(
            number=number, launcher="local", job_id="1", nodes=(), started=STARTED, ended=STARTED + 50, state="failed",
            cause="diverged", detail="the loss of step 3 is not finite on rank 1", saved_step=0,
        )  # fmt: skip
        write_state(run / "train", StageState(state="failed", attempts=(ended,)))
        watching.end(ended)
        watching.wait(5.0)

    rules = sorted(message["rule"] for message in listener.heard)
    assert rules == ["goodput_under", "loss_nan", "loss_nan"]
    low = next(message for message in listener.heard if message["rule"] == "goodput_under")
    assert (low["value"], low["threshold"]) == (0.0, 0.5)


def test_what_the_journal_said_before_an_attempt_is_old(run: Path, listener: Listener) -> None:
    write(run, math.nan)
    watching = vigil(run, Clock())
    watching.tick()
    watching.wait(1.0)

    assert listener.heard == []


def test_telling_that_goes_wrong_is_a_line_in_the_log(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    watching = vigil(run, Clock())
    (run / "train" / "journal.jsonl").mkdir()
    watching.tick()
    Vigil(run, "nothing").begin(1)

    assert caplog.text.count("could not be judged") == 2


def test_nobody_looks_more_often_than_every_few_seconds(run: Path, listener: Listener) -> None:
    clock = Clock()
    watching = Vigil(run, "train", clock=clock)
    watching.begin(1)
    write(run, math.nan)
    watching.tick()
    before = list(read_alerts(run / "train"))
    clock.now_s += 6
    watching.tick()
    watching.wait(5.0)

    assert (before, len(listener.heard)) == ([], 1)


@pytest.mark.parametrize("answer", [60.0, 500])
def test_a_dead_webhook_neither_slows_nor_stops_a_run_and_its_address_is_in_no_file(
    listener: Listener, orch: Any, answer: float
) -> None:
    listener.answers = [answer] * 99
    told = {"webhook_env": "TOY_WEBHOOK", "events": ["started", "alert"]}
    stages = {"first": {"stage": "count"}, "second": {"stage": "count", "config": {"steps": 6}}}
    recipe = orch.recipe(stages, notify=told, alerts={"goodput_under": 0.999, "loss_nan": True})
    orch("launch", recipe, "--detach")
    orch.wait(orch.over)

    first, second = (orch.stage(name)["attempts"][0] for name in ("first", "second"))
    assert (first["state"], second["state"]) == ("done", "done")
    assert second["started"] - first["ended"] < 3.0  # not the 17 s for which a hanging webhook is tried
    assert [told["rule"] for told in read_alerts(orch.run_folder / "first")] == ["goodput_under"]
    files = [path for path in orch.run_folder.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert (orch.run_folder / "second" / ALERTS).is_file()


def test_a_run_that_diverges_tells_what_its_recipe_asks_for(listener: Listener, orch: Any) -> None:
    told = {"webhook_env": "TOY_WEBHOOK", "events": ["alert"]}
    recipe = orch.recipe(
        {"first": {"stage": "fail", "config": {"how": "diverged"}}}, notify=told, alerts={"loss_nan": True}
    )
    orch("launch", recipe, code=1)
    orch.wait(lambda: listener.heard)

    assert listener.heard[0]["text"] == (
        "toy/first raises an alert (loss_nan: Diverged: the loss is nan at step 3 (alerts.loss_nan is true))"
    )
