"""GradeAnswers: a report with answers to ViP-Bench in, grades by a language model out. Imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from orchestrator.artifacts import Report, file_sha256
from orchestrator.records import INCIDENTAL, incidental, record
from orchestrator.resources import Resources, rank_count
from orchestrator.stage import Stage, StageContext

BENCHMARK = "vip_bench"
SCORES = ("overall", "overall_strict", "graded", "spread")  # and one of each ability that the questions test


@record
class GraderConfig:
    """A language model behind an OpenAI-compatible chat endpoint, and how patiently it is asked.

    The key is read from the environment or from a file when the stage runs, and is written nowhere.
    """

    url: str = field(metadata={INCIDENTAL: True})  # of the API, e.g. https://api.openai.com/v1
    model: str  # as the endpoint calls it; gpt-4-0613 as released
    key_env: str | None = incidental()  # the name of the environment variable that holds the key, never the key
    key_file: Path | None = incidental()  # or a file that holds nothing else
    rubric: Path | None = None  # a text that says how to grade, e.g. the released one; null = ours, of the same shape
    max_tokens: int = 3  # of a reply, as released; a model that thinks first needs more
    tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # what the endpoint calls them
    at_once: int = incidental(default=4)  # requests under way
    timeout_s: float = incidental(default=60.0)  # of one request
    tries: int = incidental(default=8)  # of one request, where the endpoint is away, broken or busy
    first_wait_s: float = incidental(default=1.0)  # after the first of them; doubles each time
    longest_wait_s: float = incidental(default=120.0)  # a longer one is not waited for, even if asked for
    usd_per_million_in: float | None = incidental()  # price of tokens read; null = the cost is not reckoned
    usd_per_million_out: float | None = incidental()  # and of tokens written

    def __post_init__(self) -> None:
        """Checks the address, that a key is named, and ranges."""
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.username:
            raise ValueError("url must be the address of an API, like https://api.openai.com/v1, without key or login")
        if not self.model:
            raise ValueError("model must name the model that grades")
        if (self.key_env is None) == (self.key_file is None):
            raise ValueError("key_env (the name of an environment variable) or key_file must say where the key is")
        if self.key_env is not None and not self.key_env.isidentifier():
            raise ValueError("key_env must be the name of an environment variable, not the key itself")
        if min(self.max_tokens, self.at_once, self.tries) < 1:
            raise ValueError("max_tokens, at_once and tries must be 1 or more")
        if min(self.timeout_s, self.first_wait_s, self.longest_wait_s) <= 0:
            raise ValueError("timeout_s, first_wait_s and longest_wait_s must be above 0")
        if (self.usd_per_million_in is None) != (self.usd_per_million_out is None):
            raise ValueError("usd_per_million_in and usd_per_million_out are given both or not at all")


class GradeAnswers(Stage):
    """Lets a language model grade a model's answers to ViP-Bench, 0 to 1 each, as its release does.

    Every reply is on disk before the next step, so that an attempt that dies, or a recipe that changes elsewhere, pays
    for no grade twice. One process asks; it needs no GPU.
    """

    @record
    class Config:
        """Who grades, and how often."""

        grader: GraderConfig
        runs: int = 1  # of the grader over all answers; Pix2Cap's release has 1, ViP-Bench's paper 5
        at_least: dict[str, float] = field(default_factory=dict)  # score -> wanted value; missing it fails nothing

        def __post_init__(self) -> None:
            """Checks ranges."""
            if self.runs < 1:
                raise ValueError(f"runs must be 1 or more, not {self.runs}")

    @record
    class Inputs:
        """What an evaluation found out, `vip_bench` among it."""

        report: Report

    @record
    class Outputs:
        """Scores, overall and of each ability; grades.jsonl with every grade."""

        report: Report

    def faults(self) -> Mapping[str, str]:
        """Finds a report without answers, and files that are not there."""
        grader, found = self.config.grader, {}
        for name, path in (("key_file", grader.key_file), ("rubric", grader.rubric)):
            if path is not None and not path.is_file():
                found[f"config.grader.{name}"] = f"there is no file {path}"
        report, run = self.inputs.report, self.outputs.report.path.parent.parent
        elsewhere = run not in report.path.parents and report.ready()  # what this run makes, it may yet make anew
        if elsewhere and BENCHMARK not in report.facts().get("scores", {}):
            found["inputs.report"] = f"has no answers to {BENCHMARK}: name it among config.benchmarks of its stage"
        return found

    def faults_on(self, resources: Resources) -> Mapping[str, str]:
        """Refuses processes that would only wait."""
        ranks = resources.nodes * rank_count(resources)
        return {} if ranks == 1 else {"resources": f"one process asks the grader, not {ranks}: tasks_per_node: 1"}

    def outside(self) -> Mapping[str, str]:
        """Watches the rubric."""
        path = self.config.grader.rubric
        return {} if path is None or not path.is_file() else {"rubric": file_sha256(path)}

    def foresee(self, inputs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        """Names the scores that the report will have."""
        del inputs
        return {"report": {"scores": {BENCHMARK: dict.fromkeys(SCORES)}}}

    def code_roots(self) -> tuple[str, ...]:
        """Names the code that asks, which planning does not import."""
        return ("stages.evaluate.vip_grading",)

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Asks, and writes what was answered."""
        from stages.evaluate.vip_grading import grade_report

        return {"report": grade_report(self.config, self.inputs.report, self.outputs.report.path, context)}
