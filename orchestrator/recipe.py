"""What a user asks for: a recipe of named stages."""

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from orchestrator.records import record


@record
class Resources:
    """What a stage asks of whatever runs it. Never part of a fingerprint."""

    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int | None = None  # processes; None = one per GPU, or one
    cpus_per_task: int | None = None
    memory_gb: float | None = None  # per node
    hours: float | None = None


@record
class Tracking:
    """Where MLflow lives. Never part of a fingerprint."""

    uri: str | None = "sqlite:///mlflow.db"  # null = journal only
    experiment: str | None = None  # null = the recipe's name


@record
class StageSpec:
    """One entry under `stages:`, as written."""

    stage: str  # a key of stages.STAGES
    inputs: dict[str, Any] = field(default_factory=dict)  # input -> "other.output" | path | mapping of those
    config: dict[str, Any] = field(default_factory=dict)  # typed later by the stage's own Config
    resources: Resources = field(default_factory=Resources)


@record
class Recipe:
    """A set of named stages; what they hand each other orders them."""

    name: str
    stages: dict[str, StageSpec]
    runs: Path = Path("runs")
    seed: int = 0
    tracking: Tracking = field(default_factory=Tracking)
    vars: dict[str, Any] = field(default_factory=dict)  # for ${vars.x} only


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe, applies `KEY=VALUE` overrides, resolves interpolations; every fault in one RecipeError."""
    raise NotImplementedError


def dump_recipe(recipe: Recipe) -> str:
    """Writes the resolved recipe as YAML that plans the same."""
    raise NotImplementedError
