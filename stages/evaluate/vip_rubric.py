"""How a language model is asked to grade an answer to ViP-Bench, and how its reply is read.

The shape is the release's (`vip-bench_evaluator.py` of ViP-LLaVA and of Pix2Cap): rules, a table of graded examples,
and the row that is to be completed. The words are our own, as the report says; `grader.rubric` takes the released ones.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.records import record
from stages.evaluate.vip_bench import AND, OR
from stages.evaluate.vip_stage import GraderConfig

_FUNNY = (
    "Why is the sign in the blue box funny? | The sign forbids throwing stones at it, which nobody would think of had "
    "it not been there. It gives people the very idea that it warns of."
)
_SOLVE = f"Which numbers solve the equation in the green box? | 2 {AND} -7"
RUBRIC = f"""\
You grade answers to questions about pictures. You see the question, what is true, and the answer. Say how right the \
answer is: 0.0 (wrong), 0.1, 0.2 and so on up to 1.0 (entirely right). Where the truth has {AND}, an answer is fully \
right only if it has all of the parts; where it has {OR}, any one of them is enough. Complete the last cell of the \
table with the number, and write nothing else.

Question | Truth | Answer | Grade
--- | --- | --- | ---
{_SOLVE} | 4 | 0.0
{_SOLVE} | x = 2 | 0.5
{_SOLVE} | It is -7, or 7. | 0.5
{_SOLVE} | 2 and -7 | 1.0
What is the animal within the red mask? | dog {OR} puppy | A puppy. | 1.0
{_FUNNY} | There is a sign that says not to throw stones. | 0.3
{_FUNNY} | Without it nobody would throw any; by forbidding it, the sign puts the thought into their heads. | 1.0
"""
AGAIN = "\nThe grade as a number from 0.0 to 1.0:"  # what follows the row when a first reply was no grade
# of the first request and of those after a reply that is no grade; the release asks a sixth time and forgets the reply
TEMPERATURES = (0.0, 0.0, 0.5, 1.0, 1.5)
_NUMBER = re.compile(r"\d+\.?\d*|\.\d+", re.ASCII)


@record
class Graded:
    """One answer that is to be graded."""

    key: str  # of the sample
    asked: str  # the question, with its places as <bbox>
    worded: str  # the same for who sees them drawn into the picture
    truth: str
    said: str
    tests: tuple[str, ...]


def requests_for(one: Graded, rubric: str, config: GraderConfig) -> Iterator[dict[str, Any]]:
    """Yields what an endpoint is asked about an answer: once, and again as long as its replies are no grades.

    As released, the first request shows the question with its places in words, further ones as it was asked.
    """
    for number, temperature in enumerate(TEMPERATURES):
        question = one.asked if number or not one.worded else one.worded
        truth = one.truth.replace(AND, f" {AND} ").replace(OR, f" {OR} ")
        row = f"{question} | {truth} | {one.said} | "
        yield {
            "model": config.model,
            "messages": [{"role": "user", "content": f"{rubric}\n{row}{AGAIN if number else ''}"}],
            "temperature": temperature,
            config.tokens_field: config.max_tokens,
        }


def read_grade(text: str) -> float | None:
    """Reads the first word of a reply as a grade; None where it is none from 0 to 1."""
    words = text.split()
    if not words or not _NUMBER.fullmatch(words[0]):
        return None
    grade = float(words[0])
    return grade if grade <= 1.0 else None


def read_rubric(config: GraderConfig) -> str:
    """Returns the rules and examples that a grader is shown."""
    return RUBRIC if config.rubric is None else config.rubric.read_text(encoding="utf-8")


def graded_of(plain: Mapping[str, Any]) -> Graded:
    """Reads a line of an evaluation's predictions.jsonl."""
    asked = plain["reference"]["asked"]
    return Graded(
        key=plain["key"],
        asked=asked["question"],
        worded=asked["worded"],
        truth=plain["reference"]["caption"],
        said=plain["trained"]["caption"],
        tests=tuple(asked["tests"]),
    )
