"""Evaluate: a checkpoint and held-out shards in, scores and pictures out. Imports nothing heavy."""

from collections.abc import Collection, Mapping
from dataclasses import field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from orchestrator.artifacts import Checkpoint, Report, Shards
from orchestrator.records import incidental, record
from orchestrator.stage import Stage, StageContext
from stages.abilities import asked_in_vain, asked_without_part
from stages.evaluate.questions import QUESTIONS

_ABILITIES = {name: question.ability for name, question in QUESTIONS.items()}


class Evaluate(Stage):
    """Asks a trained model every benchmark, on every rank, and beside it the same model with fresh weights.

    benchmarks: gcg (captions with grounded phrases), region_captions, refer (every expression alone, answered freely),
    refer_compat (as GLaMM's release asks: up to three expressions an image, answers given), panoptic (described
    segments), and others; a model can be asked what its family can do. Scores are computed as the released scripts
    compute them (compat), and strictly where those forgive mistakes; stages/evaluate/README.md says how each is.

    caption_scorer: what computes METEOR and CIDEr. auto = pycocoevalcap where package and Java are there, else plain,
    the fallback in Python, which the report names; pycocoevalcap = that or an error.
    phrase_encoder: a folder with a text encoder in Hugging Face's layout (bert-base-uncased, as the release has, or a
    sentence encoder) for mask recall; null = phrases are compared by their words, which the report says.
    at_least, at_most, gains: wishes, checked and shown; the stage does not fail where one is missed. A gain is a
    multiple of the untrained score; of an error, which falls, a divisor.
    """

    @record
    class Config:
        """What is asked, of how much data, and what is shown."""

        benchmarks: list[str]
        limit: int | None = None  # samples of each input; null = all
        max_new_tokens: int = 256
        batch_size: int = 8
        caption_scorer: Literal["auto", "pycocoevalcap", "plain"] = "auto"  # auto = pycocoevalcap if it can run
        phrase_encoder: Path | None = None  # folder of the encoder that compares phrases; null = by their words
        untrained: bool = False  # also score the same architecture with fresh weights: what the training brought
        pictures: int = incidental(default=8)  # of each benchmark: the first ones, not the best ones
        at_least: dict[str, dict[str, float]] = field(default_factory=dict)  # benchmark -> score -> wanted value
        at_most: dict[str, dict[str, float]] = field(default_factory=dict)  # the same, of errors
        gains: dict[str, dict[str, float]] = field(default_factory=dict)  # how many times better than untrained

        def __post_init__(self) -> None:
            """Checks names and ranges."""
            if not self.benchmarks:
                raise ValueError(f"benchmarks must name at least one of {', '.join(QUESTIONS)}")
            for name in self.benchmarks:
                _allow("benchmarks", name, QUESTIONS)
            for field_name, wishes in self.wishes().items():
                for name, scores in wishes.items():
                    _allow(field_name, name, QUESTIONS)
                    for score in scores:
                        _allow(f"{field_name}.{name}", score, _wishable(field_name, name))
            for field_name, value in (("max_new_tokens", self.max_new_tokens), ("batch_size", self.batch_size)):
                if value < 1:
                    raise ValueError(f"{field_name} must be 1 or more, not {value}")
            if self.limit is not None and self.limit < 1:
                raise ValueError(f"limit must be 1 or more, or null for all, not {self.limit}")
            if self.pictures < 0:
                raise ValueError(f"pictures must be 0 or more, not {self.pictures}")

        def wishes(self) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
            """Returns what is wished for, by the field that says how: field -> benchmark -> score -> number."""
            return {"at_least": self.at_least, "at_most": self.at_most, "gains": self.gains}

    @record
    class Inputs:
        """The model and what it has not seen."""

        model: Checkpoint
        shards: dict[str, Shards]

    @record
    class Outputs:
        """Scores, predictions, pictures."""

        report: Report

    asks_family = True

    def faults(self) -> Mapping[str, str]:
        """Lists wishes that this config cannot fulfil."""
        found = {}
        if self.config.gains and not self.config.untrained:
            found["config.gains"] = "compares with the untrained model: set config.untrained to true"
        for name, wishes in self.config.wishes().items():
            for benchmark in sorted(set(wishes) - set(self.config.benchmarks)):
                found[f"config.{name}.{benchmark}"] = f"{benchmark} is not among config.benchmarks"
        if self.config.caption_scorer == "pycocoevalcap" and find_spec("pycocoevalcap") is None:
            found["config.caption_scorer"] = "pycocoevalcap is not installed (pip install '.[scores]'); auto needs none"
        encoder = self.config.phrase_encoder
        if encoder is not None and not (encoder / "config.json").is_file():
            found["config.phrase_encoder"] = f"{encoder} has no config.json: give a folder in Hugging Face's layout"
        if not self.inputs.shards:
            found["inputs.shards"] = "needs at least one set of shards"
        return found

    def faults_with(self, family: str) -> Mapping[str, str]:
        """Lists benchmarks that ask for what a model of this family cannot do."""
        return asked_in_vain(family, self._asked(), _ABILITIES)

    def faults_given(self, inputs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, str]:
        """Lists benchmarks for which the model lacks a part that others of its family have."""
        return asked_without_part(inputs.get("model", {}), self._asked(), _ABILITIES)

    def _asked(self) -> Mapping[str, str]:
        return {f"config.benchmarks[{number}]": name for number, name in enumerate(self.config.benchmarks)}

    def outside(self) -> Mapping[str, str]:
        """Watches the files of the encoder: size and time of change."""
        encoder = self.config.phrase_encoder
        files = [] if encoder is None or not encoder.is_dir() else sorted(encoder.iterdir())
        return {str(one): f"{one.stat().st_size}:{one.stat().st_mtime_ns}" for one in files if one.is_file()}

    def foresee(self, inputs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        """Names the scores that the report will have."""
        del inputs
        return {"report": {"scores": {name: dict.fromkeys(QUESTIONS[name].scores) for name in self.config.benchmarks}}}

    def code_roots(self) -> tuple[str, ...]:
        """Names the code that asks and scores, which planning does not import."""
        return ("stages.evaluate.scoring",)

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Asks, gathers, scores, draws. Collective: every rank must call."""
        from stages.evaluate.scoring import evaluate

        facts = evaluate(self.config, self.inputs, self.outputs.report.path, context)
        return {"report": facts}


def _allow(field_name: str, given: str, allowed: Collection[str]) -> None:
    if given not in allowed:
        raise ValueError(f"{field_name}: {given!r} is unknown; known are {', '.join(allowed)}")


def _wishable(field_name: str, name: str) -> tuple[str, ...]:
    question = QUESTIONS[name]
    if field_name == "gains":
        return question.scores
    return tuple(score for score in question.scores if (score in question.falling) == (field_name == "at_most"))
