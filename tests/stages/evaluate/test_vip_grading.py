"""Grades by a language model: what is asked, what is read, what is paid for, and what no trouble of an endpoint breaks.

Every endpoint here is a real server on this machine.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts import Report
from orchestrator.errors import InputError, Preempted, StageFailed, SurroundingsError
from orchestrator.journal import Journal
from orchestrator.progress import Progress
from orchestrator.resources import Resources
from orchestrator.stage import StageContext
from orchestrator.world import World
from stages.evaluate.chat import after_s, read_key, waiting_s
from stages.evaluate.ledger import Ledger
from stages.evaluate.vip_rubric import RUBRIC, TEMPERATURES, Graded, read_grade, requests_for
from stages.evaluate.vip_stage import GradeAnswers, GraderConfig
from tests.chatserver import KEY, Answer, ChatServer, chatting, completion

VARIABLE = "GRADER_OF_TESTS"  # named unlike a secret: nobody hides its value who does not know what it is
QUICK: dict[str, Any] = {"first_wait_s": 0.001, "longest_wait_s": 5.0, "key_env": VARIABLE, "model": "grader"}
ASKED = (("rec",), ("ocr", "math"), ("rec", "know"), ("ocr",))


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """Grades everything 1.0, unless told otherwise."""
    with chatting() as chat:
        yield chat


def report_in(directory: Path, tests: tuple[tuple[str, ...], ...] = ASKED) -> Report:
    directory.mkdir(parents=True)
    with (directory / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for number, one in enumerate(tests):
            asked = {
                "question": f"What is region1 <bbox>, {number}?", "answer": "", "tests": list(one),
                "worded": f"What is in the red box, {number}?",
            }  # fmt: skip
            said = {"reference": {"caption": "a cat<OR>a kitten", "phrases": [], "asked": asked}}
            said |= {"trained": {"caption": f"It is cat {number}.", "phrases": []}}
            file.write(
                json.dumps({"benchmark": "vip_bench", "source": "a", "number": number, "key": f"q{number}"} | said)
            )
            file.write("\n")
        file.write(json.dumps({"benchmark": "gcg", "key": "another", "reference": {}, "trained": {}}) + "\n")
    report = Report(directory)
    report.commit("a" * 64, facts={"scores": {"vip_bench": {"worded": 0.5}}, "family": "glamm"})
    return report


def context_in(directory: Path, stop: Callable[[], bool]) -> StageContext:
    directory.mkdir(parents=True, exist_ok=True)
    return StageContext(
        directory=directory, name="grade", fingerprint="e" * 64, seed=3, world=World.alone(),
        journal=Journal(directory), progress=Progress(directory), stop=stop,
    )  # fmt: skip


def stage_of(directory: Path, report: Report, url: str, *, runs: int = 1, **grader: Any) -> GradeAnswers:
    config = GradeAnswers.Config(grader=GraderConfig(**{**QUICK, "url": url, **grader}), runs=runs)
    outputs = GradeAnswers.Outputs(report=Report(directory / "report"))
    return GradeAnswers(config, GradeAnswers.Inputs(report=report), outputs)


def grade(
    tmp_path: Path, server: ChatServer, *, stop: Callable[[], bool] = lambda: False, **more: Any
) -> dict[str, Any]:
    """Grades four answers, with what an attempt before left; returns metrics.json."""
    if not (tmp_path / "answers").is_dir():
        report_in(tmp_path / "answers")
    context = context_in(tmp_path / "grade", stop)
    try:
        stage_of(tmp_path / "grade", Report(tmp_path / "answers"), server.url, **more).run(context)
    finally:
        context.journal.close()
    metrics: dict[str, Any] = json.loads((tmp_path / "grade/report/metrics.json").read_text(encoding="utf-8"))
    return metrics


def scores_in(metrics: dict[str, Any]) -> dict[str, float]:
    scores: dict[str, float] = metrics["benchmarks"]["vip_bench"]["scores"]
    return scores


def number_of(body: dict[str, Any]) -> int:
    """Reads which answer a request is about."""
    return int(body["messages"][0]["content"].rpartition("It is cat ")[2][0])


# --------------------------------------------------------------------------------------------------------------- scores


def test_scores_are_means_overall_and_of_each_ability(tmp_path: Path, server: ChatServer) -> None:
    server.reply = lambda body: completion(("1.0", "0.5", "0.2", "0.0")[number_of(body)])

    metrics = grade(tmp_path, server)

    assert scores_in(metrics) == pytest.approx(
        {"overall": 0.425, "overall_strict": 0.425, "graded": 1, "spread": 0, "rec": 0.6, "ocr": 0.25, "math": 0.5,
         "know": 0.2}
    )  # fmt: skip
    assert metrics["benchmarks"]["vip_bench"]["by_tests"]["ocr, math"] == {"answers": 1, "overall": 0.5}
    lines = [json.loads(line) for line in (tmp_path / "grade/report/grades.jsonl").read_text().splitlines()]
    assert [(one["key"], one["grades"], one["replies"]) for one in lines[:2]] == [
        ("q0", [1.0], [["1.0"]]), ("q1", [0.5], [["0.5"]])
    ]  # fmt: skip


def test_several_runs_are_asked_for_each_and_their_spread_is_told(tmp_path: Path, server: ChatServer) -> None:
    server.first = [completion("0.0") for _ in range(4)]

    metrics = grade(tmp_path, server, runs=2, at_once=1)

    assert len(server.heard) == 8
    assert (scores_in(metrics)["overall"], scores_in(metrics)["spread"]) == (0.5, 0.5)


def test_what_it_took_is_added_up(tmp_path: Path, server: ChatServer) -> None:
    metrics = grade(tmp_path, server, usd_per_million_in=30.0, usd_per_million_out=60.0)

    told = metrics["grader"]
    assert (told["replies"], told["tokens_in"], told["tokens_out"]) == (4, 400, 8)
    assert told["usd"] == pytest.approx(400 * 30e-6 + 8 * 60e-6)
    assert (told["asked"], told["answered"]) == ("grader", ["grader-1"])


# -------------------------------------------------------------------------------------------------------- what is asked


ONE = Graded(
    key="k",
    asked="What is <bbox>?",
    worded="What is in the box?",
    truth="a<OR>b<AND>c",
    said="It is a.",
    tests=("rec",),
)


def config_of(**more: Any) -> GraderConfig:
    return GraderConfig(**{**QUICK, "url": "http://127.0.0.1:1/v1", **more})


def test_a_grader_completes_the_last_cell_of_a_table() -> None:
    first, second, *others = requests_for(ONE, "rules", config_of())

    assert first["messages"] == [
        {"role": "user", "content": "rules\nWhat is in the box? | a <OR> b <AND> c | It is a. | "}
    ]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("grader", 0.0, 3)
    assert "\nWhat is <bbox>? | a <OR>" in second["messages"][0]["content"]
    assert [one["temperature"] for one in (first, second, *others)] == list(TEMPERATURES)


def test_endpoints_that_count_tokens_under_another_name_are_asked_in_that() -> None:
    body = next(requests_for(ONE, "rules", config_of(tokens_field="max_completion_tokens", max_tokens=500)))

    assert (body["max_completion_tokens"], "max_tokens" in body) == (500, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.7", 0.7), ("1", 1.0), (" 0.5\n", 0.5), ("0.3 because", 0.3), ("1.0", 1.0), (".5", 0.5), ("0", 0.0),
        ("1.1", None), ("-0.5", None), ("nan", None), ("inf", None), ("", None), ("about 0.5", None), ("0.5.", None),
        ("1_0", None), ("\u0660", None), ("half", None),
    ],
)  # fmt: skip
def test_the_first_word_of_a_reply_is_the_grade_or_there_is_none(text: str, expected: float | None) -> None:
    assert read_grade(text) == expected


def test_a_rubric_of_ones_own_is_shown_in_place_of_ours(tmp_path: Path, server: ChatServer) -> None:
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("Grade as I say.\n", encoding="utf-8")

    metrics = grade(tmp_path, server, rubric=rubric)

    assert all(body["messages"][0]["content"].startswith("Grade as I say.\n") for body in server.heard)
    assert "the words of rubric.txt" in metrics["benchmarks"]["vip_bench"]["protocol"]
    assert RUBRIC.count("|") > 20


# -------------------------------------------------------------------------------------------------------------- trouble


def test_what_passes_is_asked_again_until_it_has_passed(tmp_path: Path, server: ChatServer) -> None:
    server.first = [
        Answer(status=500, body={}),
        Answer(status=503, body=b"<html>busy</html>"),
        Answer(status=429, body={"error": {"message": "slow down"}}, headers={"Retry-After": "0"}),
        Answer(body=b"not json at all"),
        Answer(body={"choices": []}),
        Answer(body=["what"]),
        Answer(body=b"[" * 100_000),
        Answer(status=408, body={}),
    ]

    metrics = grade(tmp_path, server, at_once=1, tries=9)

    assert scores_in(metrics)["overall"] == 1.0
    assert (metrics["grader"]["requests"], metrics["grader"]["replies"]) == (12, 4)


def test_an_endpoint_that_says_nothing_is_left_after_its_time(tmp_path: Path, server: ChatServer) -> None:
    hold = threading.Event()
    server.first = [Answer(hold=hold)]

    try:
        metrics = grade(tmp_path, server, at_once=1, timeout_s=0.2)
    finally:
        hold.set()

    assert scores_in(metrics)["graded"] == 1.0
    assert metrics["grader"]["requests"] == 5


def test_who_is_away_too_long_ends_the_stage_and_what_is_graded_is_not_paid_for_again(
    tmp_path: Path, server: ChatServer
) -> None:
    server.reply = lambda body: Answer(status=500, body={}) if number_of(body) == 2 else completion("1.0")

    with pytest.raises(SurroundingsError, match="could not be asked, at last: it answers 500"):
        grade(tmp_path, server, at_once=1, tries=2)
    known = len((tmp_path / "grade/replies.jsonl").read_text(encoding="utf-8").splitlines())
    server.reply, before = lambda _: completion("0.5"), len(server.heard)
    metrics = grade(tmp_path, server)

    assert known == 2
    assert len(server.heard) - before == 2
    assert scores_in(metrics)["overall"] == pytest.approx((1 + 1 + 0.5 + 0.5) / 4)
    assert metrics["grader"]["replies"] == 4


def test_a_line_that_was_cut_short_is_asked_for_again_and_the_others_are_not(
    tmp_path: Path, server: ChatServer
) -> None:
    grade(tmp_path, server)
    replies = tmp_path / "grade/replies.jsonl"
    replies.write_bytes(replies.read_bytes()[:-20])

    grade(tmp_path, server)
    grade(tmp_path, server)

    again = Ledger(replies)
    again.close()
    assert (len(server.heard), len(again)) == (5, 4)


def test_a_reply_that_is_no_grade_is_asked_for_again_and_counts_nothing_at_last(
    tmp_path: Path, server: ChatServer
) -> None:
    server.reply = lambda body: completion({0: "Well", 1: None}.get(number_of(body), "1.0"))

    metrics = grade(tmp_path, server)

    assert len(server.heard) == 2 + 2 * len(TEMPERATURES)
    assert scores_in(metrics) | {"overall": 0.5, "overall_strict": 1.0, "graded": 0.5} == scores_in(metrics)


def test_a_second_try_may_give_the_grade(tmp_path: Path, server: ChatServer) -> None:
    server.reply = lambda body: completion("1.0" if body["messages"][0]["content"].endswith(":") else "The answer")

    assert scores_in(grade(tmp_path, server))["overall_strict"] == 1.0
    assert len(server.heard) == 8


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (Answer(status=403, body={}), InputError, f"key_env: {VARIABLE} is not a key that"),
        (Answer(status=404, body={"error": "no such model"}), InputError, "'grader': .*no such model"),
        (
            Answer(status=400, body={"error": "temperature"}),
            StageFailed,
            "refuses what it is asked .400.: .*temperature",
        ),
        (Answer(status=302, body={}, headers={"Location": "http://127.0.0.1:9/"}), InputError, "sends elsewhere"),
        (Answer(status=307, body={}, headers={"Location": "http://127.0.0.1:9/"}), InputError, "sends elsewhere"),
        (Answer(status=429, body={"error": {"code": "insufficient_quota"}}), SurroundingsError, "is used up"),
        (Answer(status=429, body={}, headers={"Retry-After": "3600"}), SurroundingsError, "left alone for 3600 s"),
    ],
)
def test_what_will_not_pass_ends_the_stage_at_once(
    tmp_path: Path, server: ChatServer, answer: Answer, error: type[Exception], message: str
) -> None:
    server.reply = lambda _: answer

    with pytest.raises(error, match=message):
        grade(tmp_path, server, at_once=1)

    assert len(server.heard) == 1


def test_a_wrong_key_is_named_by_its_place_and_shown_nowhere(
    tmp_path: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = "not-the-right-key-1234"
    monkeypatch.setenv(VARIABLE, wrong)

    with caplog.at_level(logging.DEBUG), pytest.raises(InputError, match=f"key_env: {VARIABLE} is not a key") as told:
        grade(tmp_path, server)

    assert "Incorrect API key" in str(told.value)  # the server repeats the key, we do not
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert wrong not in f"{told.value}{caplog.text}{written}"


def test_the_key_is_in_nothing_that_is_written(
    tmp_path: Path, server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.first = [Answer(status=500, body={"key": KEY}), completion(f"0.5 {KEY}")]

    with caplog.at_level(logging.DEBUG):
        grade(tmp_path, server, at_once=1)

    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in f"{caplog.text}{written}"


def test_no_more_requests_are_under_way_than_allowed(tmp_path: Path, server: ChatServer) -> None:
    report_in(tmp_path / "answers", (("rec",),) * 9)
    server.reply = lambda _: completion("1.0")

    grade(tmp_path, server, at_once=2)

    assert (len(server.heard), server.most_at_once <= 2) == (9, True)


def test_who_is_asked_to_stop_stops_and_goes_on_later(tmp_path: Path, server: ChatServer) -> None:
    told = threading.Event()

    def once_told(_: dict[str, Any]) -> Answer:
        told.wait(60)
        return completion("1.0")

    def stop() -> bool:
        told.set()
        return True

    server.reply = once_told
    report_in(tmp_path / "answers", (("rec",),) * 30)

    with pytest.raises(Preempted, match="not paid for again"):
        grade(tmp_path, server, stop=stop, at_once=1)
    server.reply = lambda _: completion("1.0")
    grade(tmp_path, server)

    assert len(server.heard) == 30


# -------------------------------------------------------------------------------------------------------------- waiting


def test_waits_double_are_never_shorter_than_asked_for_and_have_an_end() -> None:
    config = config_of(first_wait_s=1.0, longest_wait_s=10.0)

    assert [waiting_s(number, 0.0, config, 1.0) for number in range(6)] == [1, 2, 4, 8, 10, 10]
    assert waiting_s(3, 0.0, config, 0.0) == 4.0
    assert waiting_s(0, 7.5, config, 0.5) == 7.5


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, 0.0), ("12", 12.0), ("0.5", 0.5), ("-3", 0.0), ("soon", 0.0), ("nan", 0.0),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0), ("Thu, 01 Jan 1970 00:01:00 GMT", 0.0),
    ],
)  # fmt: skip
def test_retry_after_is_read_as_seconds_or_as_a_date(header: str | None, expected: float) -> None:
    assert after_s(header, 100.0) == expected


# ----------------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key_env": None}, "key_env .* or key_file must say where the key is"),
        ({"key_file": Path("k")}, "key_env .* or key_file must say"),
        ({"key_env": "sk-123"}, "must be the name of an environment variable, not the key itself"),
        ({"url": "api.openai.com/v1"}, "url must be the address of an API"),
        ({"url": "https://ada:word@host/v1"}, "url must be the address of an API"),
        ({"url": "https://host/v1?key=1"}, "url must be the address of an API"),
        ({"model": ""}, "model must name"),
        ({"at_once": 0}, "at_once and tries must be 1 or more"),
        ({"timeout_s": 0.0}, "timeout_s, first_wait_s and longest_wait_s"),
        ({"usd_per_million_in": 1.0}, "are given both or not at all"),
    ],
)
def test_a_grader_that_cannot_be_asked_is_refused_by_its_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**change)


def test_a_report_without_answers_missing_files_and_idle_processes_are_named_when_planned(tmp_path: Path) -> None:
    report = report_in(tmp_path / "elsewhere/score/report")
    good = stage_of(tmp_path / "run/grade", report, "http://h/v1")
    bare = Report(tmp_path / "elsewhere/other/report")
    bare.path.mkdir(parents=True)
    bare.commit("a" * 64, facts={"scores": {"gcg": {}}})
    bad = stage_of(
        tmp_path / "run/grade", bare, "http://h/v1", key_env=None, key_file=tmp_path / "k", rubric=tmp_path / "r"
    )

    assert (good.faults(), good.faults_on(Resources())) == ({}, {})
    assert bad.faults().keys() == {"config.grader.key_file", "config.grader.rubric", "inputs.report"}
    assert good.faults_on(Resources(gpus_per_node=8)).keys() == {"resources"}


def test_the_key_comes_from_a_variable_or_a_file_and_must_look_like_one(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n", encoding="utf-8")
    from_file = config_of(key_env=None, key_file=file)

    assert read_key(from_file, {}) == read_key(config_of(), {VARIABLE: f" {KEY} "}) == KEY
    with pytest.raises(InputError, match=f"environment variable {VARIABLE} is empty or not set"):
        read_key(config_of(), {})
    with pytest.raises(InputError, match="holds blanks") as told:
        read_key(config_of(), {VARIABLE: "two words\r\nX-Evil: 1"})
    assert "Evil" not in str(told.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_key(config_of(key_env=None, key_file=tmp_path / "none"), {})


def test_a_report_of_other_benchmarks_is_refused_when_graded(tmp_path: Path, server: ChatServer) -> None:
    report_in(tmp_path / "answers", ())

    with pytest.raises(InputError, match="has no answers to vip_bench"):
        grade(tmp_path, server)

    assert server.heard == []
