"""Turns a recipe into an ordered, checked list of stages, each with what will be done about it and why."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from orchestrator.artifacts import Artifact
from orchestrator.errors import Fault, RecipeError
from orchestrator.history import Change
from orchestrator.recipe import Recipe, Resources, StageSpec
from orchestrator.records import record
from orchestrator.stage import Stage

__all__ = ["Catalog", "Change", "Plan", "PlannedStage", "make_plan", "open_stage"]


@record
class Catalog:
    """Every name a recipe can use, and where it lives: key -> "module:Class"."""

    stages: Mapping[str, str]
    families: Mapping[str, str]


@record
class PlannedStage:
    """One stage of a recipe, typed and checked, and what will be done about it."""

    name: str
    spec: StageSpec
    target: str  # "module:Class"
    config: Any  # an instance of the stage's Config
    plain_config: dict[str, Any]  # the same as plain data
    inputs: Mapping[str, Any]  # input -> Artifact | None | {name: Artifact}
    outputs: Mapping[str, Artifact]
    after: tuple[str, ...]  # the stages whose outputs it reads
    seed: int
    fingerprint: str
    identity: dict[str, Any]  # what the fingerprint is the digest of
    action: Literal["reuse", "resume", "run"]
    reason: str  # for people
    changes: tuple[Change, ...]  # against what the run folder holds
    from_step: int | None  # with action "resume"
    steps: int | None  # of the whole stage, where known
    found: Path | None  # the folder whose work is reused or resumed: the stage's own, or one in the archive
    resources: Resources
    faults: tuple[Fault, ...]  # what keeps it from starting (missing paths, damaged inputs)

    def document(self) -> dict[str, Any]:
        """Returns what `stage.json` holds: all that a worker needs to build the stage."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """Returns the stage's entry in `orch plan --json`."""
        raise NotImplementedError


@record
class Plan:
    """The stages of a recipe in an order in which they can run."""

    recipe: Recipe
    directory: Path  # the run folder
    stages: tuple[PlannedStage, ...]
    faults: tuple[Fault, ...]  # of all stages; a plan with faults can be shown, not launched

    def check(self) -> None:
        """Raises every fault as one RecipeError."""
        if self.faults:
            raise RecipeError(self.faults)

    def document(self) -> dict[str, Any]:
        """Returns the plan as `orch plan --json` shows it."""
        raise NotImplementedError


def make_plan(recipe: Recipe, catalog: Catalog, run_dir: Path) -> Plan:
    """Types and checks every stage, orders them, and decides about each: reuse, resume or run.

    Raises one RecipeError with every fault if the recipe cannot be typed or ordered. Faults of the surroundings of a
    well-formed recipe (missing paths, damaged inputs) are in `Plan.faults`: it can be shown, not launched.
    """
    raise NotImplementedError


def open_stage(document: Mapping[str, Any]) -> Stage:
    """Builds the stage that a `stage.json` describes: typed config, inputs and outputs. For workers."""
    raise NotImplementedError
