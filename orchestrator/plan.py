"""Turns a recipe into an ordered, checked list of stages, each with what will be done about it and why."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from orchestrator.artifacts import Artifact
from orchestrator.drafts import Catalog, Draft, content_of, draft_stages
from orchestrator.errors import DamagedArtifact, Fault, OrchError, RecipeError
from orchestrator.fingerprint import fingerprint, identity, roots, sources_of
from orchestrator.foresight import Foresight, foresee
from orchestrator.history import Change, Parents, Verdict, judge
from orchestrator.imports import Sources
from orchestrator.recipe import Reading, Recipe, StageSpec, read_recipe
from orchestrator.records import record
from orchestrator.resources import Resources
from orchestrator.stage import Stage
from orchestrator.typed import plain, typed
from orchestrator.wiring import Wire, bind_inputs, load_target, slots

__all__ = ["Catalog", "Change", "Plan", "PlannedStage", "make_plan", "open_stage", "plan_recipe"]


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
    foresight: Foresight  # what its outputs and its model will be like

    def document(self) -> dict[str, Any]:
        """Returns what `stage.json` holds: all that a worker needs to build the stage."""
        return {
            "name": self.name,
            "stage": self.spec.stage,
            "target": self.target,
            "config": self.plain_config,
            "inputs": {name: _located(given) for name, given in self.inputs.items()},
            "outputs": {name: _located(output) for name, output in self.outputs.items()},
            "after": list(self.after),
            "seed": self.seed,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "resources": plain(self.resources),
            "steps": self.steps,
            "working_directory": str(Path.cwd()),  # what relative paths in the config are relative to
        }

    def summary(self) -> dict[str, Any]:
        """Returns the stage's entry in `orch plan --json`."""
        return {
            "name": self.name,
            "stage": self.spec.stage,
            "after": list(self.after),
            "action": self.action,
            "reason": self.reason,
            "changes": [{"key": change.key, "was": change.was, "is": change.is_} for change in self.changes],
            "from_step": self.from_step,
            "steps": self.steps,
            "fingerprint": self.fingerprint,
            "code": dict(self.identity["code"]),  # module -> digest of its statements
            "resources": plain(self.resources),
            "memory_gb_per_gpu": None,
            "gpu_hours": _gpu_hours(self.resources),
        }


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
        document: dict[str, Any] = {"recipe": self.recipe.name, "run": str(self.directory), "valid": not self.faults}
        if self.faults:
            document["faults"] = [{"key": fault.key, "message": fault.message} for fault in self.faults]
        return {**document, "stages": [stage.summary() for stage in self.stages]}


def plan_recipe(path: Path, overrides: Sequence[str], catalog: Catalog, *, directory: Path | None = None) -> Plan:
    """Reads and plans a recipe; the faults of its text and those of its stages are told together.

    The run folder is `runs/NAME` of the recipe unless one is given.
    """
    reading = read_recipe(path, overrides)
    if reading.recipe is None:
        raise RecipeError(reading.faults)
    return _plan(reading, reading.recipe, catalog, directory or reading.recipe.runs / reading.recipe.name)


def make_plan(recipe: Recipe, catalog: Catalog, run_dir: Path) -> Plan:
    """Types and checks every stage, orders them, and decides about each: reuse, resume or run.

    Raises one RecipeError with every fault if the recipe cannot be typed or ordered. What only keeps a stage of a
    well-formed recipe from starting (missing paths, damaged inputs, what the stage itself finds) is in `Plan.faults`:
    such a plan can be shown, not launched.
    """
    return _plan(Reading(recipe=recipe, faults=(), broken=frozenset()), recipe, catalog, run_dir)


def open_stage(document: Mapping[str, Any]) -> Stage:
    """Builds the stage that a `stage.json` describes: typed config, inputs and outputs. For workers."""
    cls = load_target(document["target"])
    faults: list[Fault] = []
    config = typed(cls.Config, document["config"], "config", faults)
    if faults:
        told = "; ".join(str(fault) for fault in faults)
        raise DamagedArtifact(f"stage.json of {document['name']} does not fit {document['target']}: {told}")
    paths = {name: Path(entry["path"]) for name, entry in _entries(document["inputs"])}
    inputs = bind_inputs(cls, lambda name, kind: kind(paths[name]), list(paths))
    outputs = {name: slot.kind(Path(document["outputs"][name]["path"])) for name, slot in slots(cls.Outputs).items()}
    return cls(config, inputs, cls.Outputs(**outputs))


def _plan(reading: Reading, recipe: Recipe, catalog: Catalog, run_dir: Path) -> Plan:
    drafts = draft_stages(recipe, catalog, run_dir, reading.faults, reading.broken)
    sources = sources_of([*catalog.stages.values(), *catalog.families.values()])
    planned: dict[str, PlannedStage] = {}
    for draft in drafts:
        planned[draft.name] = _plan_stage(draft, recipe.seed, run_dir, sources, planned)
    stages = tuple(planned.values())
    return Plan(
        recipe=recipe,
        directory=run_dir,
        stages=stages,
        faults=tuple(fault for stage in stages for fault in stage.faults),
    )


def _plan_stage(
    draft: Draft, seed: int, run_dir: Path, sources: Sources, planned: Mapping[str, PlannedStage]
) -> PlannedStage:
    outside, contents, faults = _surroundings(draft)
    foresight = foresee(draft, lambda name: planned[name].foresight)
    faults += tuple(Fault(key=f"stages.{draft.name}.{key}", message=text) for key, text in foresight.faults.items())
    found_by_name = () if faults else draft.stage.code_roots()  # a stage with faults may not know them
    code = sources.closure(roots(draft.target, found_by_name, draft.families))
    known = identity(
        key=draft.spec.stage, target=draft.target, families=draft.families, config=draft.config, seed=seed, code=code,
        inputs={name: contents.get(name) or _origin(wire, planned) for name, wire in draft.wires.items()},
        outside=outside,
    )  # fmt: skip
    digest = fingerprint(known)
    verdict = _decide(draft, run_dir, known, digest, planned, faults)
    return PlannedStage(
        name=draft.name, spec=draft.spec, target=draft.target, config=draft.config, plain_config=plain(draft.config),
        inputs={name: getattr(draft.stage.inputs, name) for name in slots(type(draft.stage).Inputs)},
        outputs=draft.outputs, after=draft.after, seed=seed, fingerprint=digest, identity=known,
        action=verdict.action, reason=verdict.reason, changes=verdict.changes, from_step=verdict.from_step,
        steps=None if faults else draft.stage.steps(), found=verdict.found, resources=draft.spec.resources,
        faults=faults, foresight=foresight,
    )  # fmt: skip


def _surroundings(draft: Draft) -> tuple[Mapping[str, str], Mapping[str, str], tuple[Fault, ...]]:
    """Looks at what a stage depends on outside the recipe and at its artifacts from elsewhere; unless it has faults."""
    if draft.faults:
        return {}, {}, draft.faults
    try:
        paths = {name: (wire.kind, wire.path) for name, wire in draft.wires.items() if wire.path is not None}
        return draft.stage.outside(), {name: content_of(kind(path)) for name, (kind, path) in paths.items()}, ()
    except (OrchError, OSError) as error:
        return {}, {}, (Fault(key=f"stages.{draft.name}", message=f"what it reads cannot be looked at: {error}"),)


def _decide(
    draft: Draft,
    run_dir: Path,
    known: dict[str, Any],
    digest: str,
    planned: Mapping[str, PlannedStage],
    faults: tuple[Fault, ...],
) -> Verdict:
    if faults:
        return Verdict(action="run", reason=f"cannot start: {faults[0].message}")
    blocked = [name for name in draft.after if planned[name].reason.startswith(("cannot start", "waits for"))]
    if blocked:
        return Verdict(action="run", reason=f"waits for {blocked[0]}, which cannot start")
    makers = {name: wire.stage for name, wire in draft.wires.items() if wire.stage is not None}
    again = {name: maker for name, maker in makers.items() if planned[maker].action != "reuse"}
    there = {name: wire for name, wire in draft.wires.items() if name in makers and name not in again}
    digests = {name: _made(wire, planned).digest() for name, wire in there.items()}
    parents, keeps = Parents(digests=digests, again=again), draft.stage.keeps_parts
    return judge(run_dir, draft.name, known, digest, draft.outputs, parents, keeps_parts=keeps)


def _made(wire: Wire, planned: Mapping[str, PlannedStage]) -> Artifact:
    """Returns the artifact of a reused stage where it lies now, which may be the archive."""
    maker = planned[wire.stage or ""]
    return wire.kind((maker.found or Path()) / (wire.output or ""))


def _origin(wire: Wire, planned: Mapping[str, PlannedStage]) -> str:
    """Returns what stands in an identity for an input made by another stage: the maker's fingerprint."""
    return "" if wire.stage is None else f"{planned[wire.stage].fingerprint}:{wire.output}"


def _located(given: Any) -> Any:
    """Returns artifacts as plain data, with absolute paths: a worker may stand somewhere else."""
    if isinstance(given, Artifact):
        return {"kind": given.kind, "path": os.path.abspath(given.path)}  # noqa: PTH100 - resolve() would follow links
    return None if given is None else {name: _located(item) for name, item in given.items()}


def _entries(inputs: Mapping[str, Any]) -> list[tuple[str, Mapping[str, str]]]:
    """Returns the wired names and places in the `inputs` of a stage.json."""
    entries: list[tuple[str, Mapping[str, str]]] = []
    for name, given in inputs.items():
        if given is not None and isinstance(given.get("path"), str):
            entries.append((name, given))
        elif given is not None:
            entries += [(f"{name}.{item}", entry) for item, entry in given.items()]
    return entries


def _gpu_hours(resources: Resources) -> float | None:
    if resources.hours is None:
        return None
    return resources.nodes * resources.gpus_per_node * resources.hours
