"""Grades a report's answers to ViP-Bench: some at once, each reply kept, each score as published."""

import json
import logging
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.artifacts import Report, write_json, write_text
from orchestrator.errors import InputError, Preempted
from orchestrator.records import record
from orchestrator.stage import StageContext
from stages.evaluate.chat import ChatEndpoint, Left, Reply, read_key
from stages.evaluate.ledger import Ledger, name_of
from stages.evaluate.masks import mean
from stages.evaluate.vip_rubric import Graded, graded_of, read_grade, read_rubric, requests_for
from stages.evaluate.vip_stage import BENCHMARK, GradeAnswers, GraderConfig

LEDGER = "replies.jsonl"
LOOK_S = 0.5  # how often to look whether the work is to stop

log = logging.getLogger(__name__)


@record
class Grade:
    """What a grader thinks of an answer, and everything that it said of it."""

    grade: float | None  # 0 to 1; None: none of its replies was a grade
    replies: tuple[Reply, ...]


def grade_report(
    config: GradeAnswers.Config, report: Report, directory: Path, context: StageContext
) -> Mapping[str, Any]:
    """Writes metrics.json and grades.jsonl; returns facts."""
    answers = read_answers(report)
    key, rubric = read_key(config.grader, os.environ), read_rubric(config.grader)
    over, ledger = threading.Event(), Ledger(context.directory / LEDGER)
    endpoint = ChatEndpoint(config.grader, key, over=over)
    log.info("%d answers, %d replies of %s known already", len(answers), len(ledger), config.grader.model)
    ask = partial(_grade, endpoint=endpoint, ledger=ledger, rubric=rubric, config=config.grader)
    work = [(one, run) for run in range(config.runs) for one in answers]
    try:
        grades = _all(ask, work, config.grader.at_once, over, context)
    finally:
        ledger.close()
    runs = [grades[start : start + len(answers)] for start in range(0, len(grades), len(answers))]
    return _write(config, report, directory, answers, runs, endpoint.requests, context)


def read_answers(report: Report) -> list[Graded]:
    """Reads what the trained model answered; InputError where the report has nothing of the kind."""
    lines = (report.path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [graded_of(plain) for plain in map(json.loads, lines) if plain["benchmark"] == BENCHMARK]
    if not answers:
        raise InputError(f"inputs.report: {report.path} has no answers to {BENCHMARK}; evaluate with that benchmark")
    return answers


def _grade(
    one: Graded, run: int, *, endpoint: ChatEndpoint, ledger: Ledger, rubric: str, config: GraderConfig
) -> Grade:
    """Asks until a reply is a grade; replies that are in the ledger are not asked for."""
    replies = []
    for body in requests_for(one, rubric, config):
        name = name_of(body, run)
        reply = ledger.get(name)
        if reply is None:
            reply = endpoint.ask(body)
            ledger.add(name, reply)
        replies.append(reply)
        if (grade := read_grade(reply.text)) is not None:
            return Grade(grade=grade, replies=tuple(replies))
    log.warning("%s: %d replies, and none of them a grade", one.key, len(replies))
    return Grade(grade=None, replies=tuple(replies))


def _all(
    ask: "partial[Grade]", work: Sequence[tuple[Graded, int]], at_once: int, over: threading.Event,
    context: StageContext,
) -> list[Grade]:  # fmt: skip
    """Grades everything, `at_once` answers at a time; whatever ends the work lets requests under way end first."""

    def graded(one: Graded, run: int) -> Grade:
        try:
            return ask(one, run)
        except BaseException:
            over.set()  # before this thread takes the next answer
            raise

    with ThreadPoolExecutor(at_once, thread_name_prefix="grader") as threads:
        futures = [threads.submit(graded, one, run) for one, run in work]
        try:
            waiting: set[Future[Grade]] = set(futures)
            while waiting:
                done, waiting = wait(waiting, timeout=LOOK_S, return_when=FIRST_EXCEPTION)
                context.progress.advance(len(work) - len(waiting), len(work), "answer")
                if any(future.exception() for future in done):
                    break
                if waiting and context.stop():
                    raise Preempted("asked to stop; grades so far are kept, and not paid for again")
        finally:
            over.set()
            threads.shutdown(wait=True, cancel_futures=True)
    failed = [future.exception() for future in futures if future.done() and not future.cancelled()]
    for error in failed:
        if error is not None and not isinstance(error, Left):
            raise error
    return [future.result() for future in futures]


def scores_of(answers: Sequence[Graded], runs: Sequence[Sequence[float | None]]) -> dict[str, float]:
    """Returns means over runs, as published but 0 to 1: overall, and of the answers that test each ability.

    An answer that nobody could grade counts as wrong, as released; strictly it does not count.
    """
    overall = [mean([grade or 0.0 for grade in grades]) for grades in runs]
    given = [grade for grades in runs for grade in grades if grade is not None]
    tests = sorted({test for one in answers for test in one.tests})
    return {
        "overall": mean(overall),
        "overall_strict": mean(given),
        "graded": len(given) / max(1, sum(len(grades) for grades in runs)),
        "spread": float(np.std(overall)),
        **{test: _mean_of(answers, runs, test) for test in tests},
    }


def _mean_of(answers: Sequence[Graded], runs: Sequence[Sequence[float | None]], test: str) -> float:
    chosen = [place for place, one in enumerate(answers) if test in one.tests]
    return mean([mean([grades[place] or 0.0 for place in chosen]) for grades in runs])


def cost_of(config: GraderConfig, replies: Sequence[Reply]) -> dict[str, Any]:
    """Adds up what the grades took, those of earlier attempts included: replies, tokens, and their price if known."""
    tokens_in, tokens_out = sum(one.tokens_in for one in replies), sum(one.tokens_out for one in replies)
    cost = None
    if config.usd_per_million_in is not None and config.usd_per_million_out is not None:
        cost = (tokens_in * config.usd_per_million_in + tokens_out * config.usd_per_million_out) / 1e6
    return {"replies": len(replies), "tokens_in": tokens_in, "tokens_out": tokens_out, "usd": cost}


def _write(
    config: GradeAnswers.Config, report: Report, directory: Path, answers: Sequence[Graded],
    runs: Sequence[Sequence[Grade]], requests: int, context: StageContext,
) -> dict[str, Any]:  # fmt: skip
    shutil.rmtree(directory, ignore_errors=True)  # what a killed attempt left
    directory.mkdir(parents=True)
    lines = (_line(one, [grades[place] for grades in runs]) for place, one in enumerate(answers))
    write_text(directory / "grades.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    grades = [[one.grade for one in run] for run in runs]
    scores, known = scores_of(answers, grades), report.facts()
    grader = {
        "asked": config.grader.model,
        "answered": sorted({reply.model for run in runs for one in run for reply in one.replies}),
        "requests": requests,  # of this attempt
        **cost_of(config.grader, [reply for run in runs for one in run for reply in one.replies]),
    }
    checks = [_check(name, scores.get(name, 0.0), wanted) for name, wanted in config.at_least.items()]
    benchmark = {
        "images": len(answers), "phrases": len(answers), "scores": scores, "untrained": None, "published": {},
        "by_shards": {}, "sources": [], "protocol": _protocol(config), "meanings": _meanings(scores),
        "modes": {name: "strict" if name in {"overall_strict", "graded"} else "compat" for name in scores},
        "by_tests": _by_tests(answers, grades),
    }  # fmt: skip
    metrics = {
        "benchmarks": {BENCHMARK: benchmark}, "checks": checks, "family": known.get("family"), "pictures": [],
        "answers": report.digest(), "grader": grader,
    }  # fmt: skip
    write_json(directory / "metrics.json", metrics)
    context.journal.metrics(0, {f"eval/{BENCHMARK}/{name}": value for name, value in scores.items()})
    spent = {name: value for name, value in grader.items() if isinstance(value, int | float)}
    context.journal.metrics(0, {f"grader/{name}": float(value) for name, value in spent.items()})
    log.info("%s: overall %.3f; %s", BENCHMARK, scores["overall"], grader)
    passed = all(check["passed"] for check in checks)
    return {"scores": {BENCHMARK: scores}, "passed": passed, "family": known.get("family"), "grader": grader}


def _line(one: Graded, grades: Sequence[Grade]) -> dict[str, Any]:
    said = [[reply.text for reply in grade.replies] for grade in grades]
    return {
        "key": one.key, "question": one.asked, "truth": one.truth, "answer": one.said, "tests": list(one.tests),
        "grades": [grade.grade for grade in grades], "replies": said,
    }  # fmt: skip


def _by_tests(answers: Sequence[Graded], runs: Sequence[Sequence[float | None]]) -> dict[str, dict[str, float]]:
    """Scores the answers that test the very same abilities together, as the release's second table."""
    together: dict[str, list[int]] = {}
    for place, one in enumerate(answers):
        together.setdefault(", ".join(one.tests), []).append(place)
    return {
        tests: {"answers": len(places), "overall": mean([mean([run[at] or 0.0 for at in places]) for run in runs])}
        for tests, places in sorted(together.items())
    }


def _check(name: str, value: float, wanted: float) -> dict[str, Any]:
    shown = {"score": f"{BENCHMARK}.{name}", "limit": "at least", "wanted": wanted, "is": value}
    return {**shown, "passed": value >= wanted}


def _protocol(config: GradeAnswers.Config) -> str:
    words = "our own words" if config.grader.rubric is None else f"the words of {config.grader.rubric.name}"
    return (
        f"ViP-Bench, graded from 0 to 1 by {config.grader.model}, {config.runs} times, shown rules and examples in "
        f"{words}; the published scores are gpt-4-0613's under the released words, times 100. The grader sees each "
        "question with its places in words, what is true and what was answered, not the picture; a reply that is no "
        "grade is asked for again, warmer each time, five times in all."
    )


def _meanings(scores: Mapping[str, float]) -> dict[str, str]:
    known = {
        "overall": "mean grade; an answer without one counts 0",
        "overall_strict": "mean grade of the answers that have one",
        "graded": "answers that have a grade",
        "spread": "standard deviation of the overall scores of the grader's runs",
    }
    return {name: known.get(name, f"mean grade of the questions that test {name}") for name in scores}
