"""The stages of a recipe, typed and wired, before anything is decided about them."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.artifacts import Artifact
from orchestrator.checks import check_cycles, check_external, check_name, check_paths, check_trackers, in_order
from orchestrator.errors import Fault, InputError, OrchError, RecipeError
from orchestrator.promotion import MODELS, check_registration
from orchestrator.recipe import Recipe, StageSpec
from orchestrator.records import record
from orchestrator.resources import Resources
from orchestrator.stage import Stage
from orchestrator.typed import dotted, suggestion, typed
from orchestrator.wiring import Wire, bind_inputs, bind_outputs, check_wire, load_target, wires_of

UNTOLD = ""  # in the place of a family: nobody can say, for a reason that is a fault already


@record
class Catalog:
    """Every name a recipe can use, and where it lives: key -> "module:Class"."""

    stages: Mapping[str, str]
    families: Mapping[str, str]


@record
class Draft:
    """One stage of a recipe, typed and wired, with the faults that keep it from starting."""

    name: str
    spec: StageSpec
    target: str
    stage: Stage
    config: Any
    wires: Mapping[str, Wire]
    outputs: Mapping[str, Artifact]
    after: tuple[str, ...]
    families: Mapping[str, str]  # the model families whose code it runs -> "module:Class"
    faults: tuple[Fault, ...]


@record
class Typed:
    """What could be made of one entry of a recipe; the class is None if there is none of that name."""

    key: str
    cls: type[Stage] | None
    config: Any
    wires: dict[str, Wire]


def draft_stages(
    recipe: Recipe, catalog: Catalog, run_dir: Path, told: tuple[Fault, ...], broken: frozenset[str]
) -> list[Draft]:
    """Types and wires every stage, in an order in which they can run.

    Raises one RecipeError with every fault, those already `told` among them, if any of them leaves a stage untyped
    or unordered. Stages in `broken` are known to be written but unreadable. What only keeps a stage from starting
    (missing paths, damaged inputs, faults that it finds itself) is left with the drafts.
    """
    faults = list(told)
    entries = {name: _type_stage(name, spec, catalog, faults) for name, spec in recipe.stages.items()}
    makers = {**dict.fromkeys(broken), **{name: entry.cls for name, entry in entries.items()}}
    for entry in entries.values():
        found = (check_wire(wire, makers, f"{entry.key}.inputs.{wire.name}") for wire in entry.wires.values())
        faults.extend(fault for fault in found if fault is not None)
    after = {name: _after(entry, entries) for name, entry in entries.items()}
    faults.extend(check_cycles(after))
    starts = {name: _starting_faults(entry) for name, entry in entries.items()}
    sound = {name: entry for name, entry in entries.items() if _is_sound(entry, faults)}
    families = {
        name: _families(entry, entries, catalog, [*starts[name], *faults], faults) for name, entry in sound.items()
    }
    stages = {
        name: _build(entry, recipe.stages[name].resources, families[name], run_dir, faults, starts[name])
        for name, entry in sound.items()
    }
    built = {name: stage for name, stage in stages.items() if stage is not None}
    faults += check_registration(recipe.tracking.registration, makers, entries, built)
    faults += check_trackers(recipe.tracking.also)
    if faults:
        raise RecipeError([*faults, *(fault for found in starts.values() for fault in found)])
    return [
        Draft(
            name=name, spec=recipe.stages[name], target=catalog.stages[recipe.stages[name].stage], stage=stages[name],
            config=entries[name].config, wires=entries[name].wires,
            outputs=bind_outputs(type(stages[name]), run_dir / name), after=after[name], families=families[name],
            faults=tuple(starts[name]),
        )
        for name in in_order(after)
    ]  # fmt: skip


def content_of(artifact: Artifact) -> str:
    """Returns the digest of an artifact from elsewhere; of raw data without a manifest, one of names and sizes."""
    digest = artifact.digest()
    if digest or artifact.kind != "raw":
        return digest
    listing = hashlib.sha256()
    for folder, folders, names in os.walk(artifact.path):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            listing.update(f"{path.relative_to(artifact.path)} {path.stat().st_size}\n".encode())
    return listing.hexdigest()


def _type_stage(name: str, spec: StageSpec, catalog: Catalog, faults: list[Fault]) -> Typed:
    key = f"stages.{name}"
    faults.extend(check_name(name))
    cls = _class_of(spec.stage, catalog, key, faults)
    if cls is None:
        return Typed(key=key, cls=None, config=None, wires={})
    config = typed(cls.Config, spec.config, f"{key}.config", faults)
    return Typed(key=key, cls=cls, config=config, wires=wires_of(cls, spec.inputs, f"{key}.inputs", faults))


def _class_of(stage: str, catalog: Catalog, key: str, faults: list[Fault]) -> type[Stage] | None:
    target = catalog.stages.get(stage)
    if target is None:
        message = f"there is no stage {stage!r}{suggestion(stage, list(catalog.stages))}"
        faults.append(Fault(key=f"{key}.stage", message=message))
        return None
    try:
        return load_target(target)
    except InputError as error:
        faults.append(Fault(key=f"{key}.stage", message=str(error)))
        return None


def _after(entry: Typed, entries: Mapping[str, Typed]) -> tuple[str, ...]:
    stages = (wire.stage for wire in entry.wires.values())
    return tuple(dict.fromkeys(stage for stage in stages if stage is not None and stage in entries))


def _starting_faults(entry: Typed) -> list[Fault]:
    """Lists what keeps a stage from starting here and now: missing paths, damaged artifacts from elsewhere."""
    faults = check_paths(entry.config, f"{entry.key}.config")
    for wire in entry.wires.values():
        if wire.path is not None:
            faults += check_external(wire.kind(wire.path), f"{entry.key}.inputs.{wire.name}")
    return faults


def _is_sound(entry: Typed, faults: Sequence[Fault]) -> bool:
    """Tells whether a stage by itself is fine, so that it can be asked for faults of its own."""
    return entry.cls is not None and not any(f"{fault.key}.".startswith(f"{entry.key}.") for fault in faults)


def _build(
    entry: Typed,
    resources: Resources,
    families: Iterable[str],
    run_dir: Path,
    faults: list[Fault],
    starts: list[Fault],
) -> Any:
    """Builds the stage and asks it what keeps it from starting: config, inputs, models, resources that do not fit."""
    assert entry.cls is not None  # noqa: S101 - only sound entries come here
    artifacts = {name: wire.artifact(run_dir) for name, wire in entry.wires.items()}
    inputs = bind_inputs(entry.cls, lambda name, _kind: artifacts[name], list(artifacts))
    outputs = entry.cls.Outputs(**bind_outputs(entry.cls, run_dir / entry.key.partition(".")[2]))
    try:
        stage = entry.cls(entry.config, inputs, outputs)
        found = {**stage.faults_on(resources), **stage.faults()}
        for family in families:
            found |= stage.faults_with(family)
    except (OrchError, ValueError) as error:
        faults.append(Fault(key=entry.key, message=str(error)))
        return None
    told = {fault.key for fault in starts}  # a missing path may be found by both
    faults_by_key = {dotted(entry.key, key): message for key, message in found.items()}
    starts.extend(Fault(key=key, message=message) for key, message in faults_by_key.items() if key not in told)
    return stage


def _families(
    entry: Typed, entries: Mapping[str, Typed], catalog: Catalog, told: Sequence[Fault], faults: list[Fault]
) -> dict[str, str]:
    """Returns the model families whose code a stage runs because of the checkpoints it is given."""
    asked: dict[str, str] = {}
    asks = entry.cls is not None and entry.cls.asks_family
    for wire in entry.wires.values() if asks else ():
        key = f"{entry.key}.inputs.{wire.name}"
        if wire.kind.kind not in MODELS or any(fault.key == key for fault in told):
            continue
        family = _family_of(wire, entries)
        if family == UNTOLD:
            continue
        if family is None:
            message = f"{wire.text!r} names no model family, so nobody knows how to load it"
            faults.append(Fault(key=key, message=message))
        elif family not in catalog.families:
            known = suggestion(family, list(catalog.families))
            faults.append(Fault(key=key, message=f"{wire.text!r} is of the unknown model family {family!r}{known}"))
        else:
            asked[family] = catalog.families[family]
    return asked


def _family_of(wire: Wire, entries: Mapping[str, Typed]) -> str | None:
    """Follows a checkpoint to the stage that knows its family, or to its manifest."""
    while wire.path is None:
        maker = entries.get(wire.stage or "")
        if maker is None or maker.cls is None:
            return UNTOLD  # that stage has a fault of its own
        if maker.cls.family is not None:
            return maker.cls.family
        passed = [made for made in maker.wires.values() if made.kind.kind in MODELS]
        if not passed:
            return None
        wire = passed[0]
    try:
        family = wire.kind(wire.path).facts().get("family")
    except (OrchError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return UNTOLD  # what is wrong with it is told by check_external
    return family if isinstance(family, str) else None
