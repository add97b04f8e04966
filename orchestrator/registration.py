"""What a recipe says of MLflow: where it lives, which export is to become a version in its registry, and when."""

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import Any, Literal

from orchestrator.records import hidden, record

NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_ .-]*[A-Za-z0-9_])?")  # what MLflow takes, without what needs quotes
ALIAS = re.compile(r"[A-Za-z0-9_-]+")
RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)  # MLflow keeps these for itself
CONDITION = re.compile(r"\s*(\S*?)\s*([-+]?[\d.]\S*)\s*")
REGISTERED, WHY = "orch.registered", "orch.registered.why"  # tags of runs: NAME/VERSION or NOT; what was checked
NOT = "no"
OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt,
}  # fmt: skip


@record
class Condition:
    """What a score must be, as written: `>= 0.5`."""

    operator: str
    bound: float

    def holds(self, value: float) -> bool:
        """Tells whether a score is so; one that is not a number is not."""
        return OPERATORS[self.operator](value, self.bound)

    def __str__(self) -> str:
        """Reads as it is written in a recipe."""
        return f"{self.operator} {self.bound:g}"


@record
class Registration:
    """Which export becomes a version in MLflow's model registry, and when. Never part of a fingerprint."""

    name: str  # of the registered model; made if it is missing
    stage: str | None = None  # the one that exports; null = the only one of the recipe that does
    alias: str | None = "champion"  # moves to the new version; null = none
    when: dict[str, dict[str, dict[str, str]]] = field(
        default_factory=dict
    )  # stage that evaluates -> benchmark -> score -> ">= 0.5", "> 0.5", "<= 0.5" or "< 0.5"

    def __post_init__(self) -> None:
        """Refuses names that MLflow would, and conditions that nobody can judge."""
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name must be letters, digits, '_', '-', '.' and inner spaces, and is {self.name!r}")
        if self.alias is not None and not ALIAS.fullmatch(self.alias):
            raise ValueError(f"alias must be letters, digits, '_' and '-', or null, and is {self.alias!r}")
        if self.alias is not None and RESERVED_ALIAS.fullmatch(self.alias):
            raise ValueError(f"alias must be another: MLflow keeps {self.alias!r} for itself")
        for stage, benchmark, score, text in self._written():
            _condition(f"when.{stage}.{benchmark}.{score}", text)

    def conditions(self, stage: str) -> Iterator[tuple[str, str, Condition]]:
        """Yields benchmark, score and what it must be, of one stage that evaluates."""
        for name, benchmark, score, text in self._written():
            if name == stage:
                yield benchmark, score, _condition(score, text)

    def _written(self) -> Iterator[tuple[str, str, str, str]]:
        for stage, benchmarks in self.when.items():
            for benchmark, scores in benchmarks.items():
                yield from ((stage, benchmark, score, text) for score, text in scores.items())


@record
class Tracking:
    """Where MLflow lives. Never part of a fingerprint."""

    uri: str | None = "sqlite:///mlflow.db"  # null = journal only
    experiment: str | None = None  # null = the recipe's name
    register: Registration | str | None = None  # a model of the registry that the export becomes a version of
    also: tuple[Literal["tensorboard", "wandb"], ...] = ()  # who hears of it beside MLflow; extras of those names
    written_uri: str | None = hidden()  # uri before the environment was filled in: what recipe.yaml keeps

    def __post_init__(self) -> None:
        """Refuses to register with nobody, or under a name that cannot be."""
        if self.register is not None and self.uri is None:
            raise ValueError("register needs MLflow, and uri is null; set register to null, too")
        if len(set(self.also)) < len(self.also):
            raise ValueError(f"also must name each once, and is {', '.join(self.also)}")
        if isinstance(self.register, str):
            try:
                Registration(name=self.register)
            except ValueError as error:
                raise ValueError(f"register: {error}") from None

    @property
    def registration(self) -> Registration | None:
        """Returns what to register; a name alone is the short form."""
        return Registration(name=self.register) if isinstance(self.register, str) else self.register


@record
class Promotion:
    """What became of an export that was to be registered."""

    version: str | None  # NAME/VERSION; None = it became none
    why: str  # the scores that were checked, or what was missed

    def __str__(self) -> str:
        """Says it in words."""
        return f"registered as {self.version} ({self.why})" if self.version else f"not registered: {self.why}"


def promotion_of(told: Mapping[str, Any]) -> Promotion | None:
    """Reads it from what a run was told (its `tracking.json`); None where nothing is decided."""
    tags = told.get("tags", {})
    if REGISTERED not in tags:
        return None
    return Promotion(version=None if tags[REGISTERED] == NOT else tags[REGISTERED], why=tags.get(WHY, ""))


def _condition(key: str, text: str) -> Condition:
    match = CONDITION.fullmatch(text)
    try:
        sign, bound = (match[1], float(match[2])) if match else ("", math.nan)
    except ValueError:
        sign, bound = "", math.nan
    if sign not in OPERATORS or not math.isfinite(bound):
        allowed = ", ".join(OPERATORS)
        raise ValueError(f"{key} must be one of {allowed} and a number, as in '>= 0.5', and is {text!r}")
    return Condition(operator=sign, bound=bound)
