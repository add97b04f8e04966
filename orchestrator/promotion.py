"""Whether a recipe has what `tracking.register` asks for: the export, and scores of that model."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts import Artifact, Export, Report
from orchestrator.errors import Fault
from orchestrator.registration import Registration
from orchestrator.stage import Stage
from orchestrator.typed import listed, suggestion
from orchestrator.wiring import load_target, slots

if TYPE_CHECKING:
    from orchestrator.drafts import Typed
    from orchestrator.plan import Plan

KEY = "tracking.register"
MODELS = ("checkpoint", "export")  # kinds of artifacts that belong to a model family


def check_registration(
    registration: Registration | None,
    makers: Mapping[str, type[Stage] | None],
    entries: Mapping[str, "Typed"],
    stages: Mapping[str, Stage],
) -> list[Fault]:
    """Lists what a registration asks for and the recipe does not have.

    `makers` are the classes of all stages by name, None where that is not known for a fault of its own; `stages` are
    those that could be built, and can be asked which scores they will have.
    """
    if registration is None:
        return []
    faults = list(_check_export(registration, makers))
    exports = _exporting(registration, makers)
    exporting = entries[exports] if not faults and makers.get(exports) is not None else None
    for name in registration.when:
        key = f"{KEY}.when.{name}"
        if name not in makers:
            faults.append(Fault(key=key, message=f"there is no stage {name!r}{suggestion(name, list(makers))}"))
        elif makers[name] is None:
            continue
        elif name not in (scoring := _writers(makers, Report)):
            message = f"stage {name!r} writes no report, so it has no scores; those that do: {listed(scoring)}"
            faults.append(Fault(key=key, message=message))
        else:
            faults += [] if exporting is None else _check_model(entries[name], exporting, key)
            faults += _check_scores(registration.when[name], _foreseen(stages.get(name)), key)
    return faults


def resolved(plan: "Plan") -> Registration | None:
    """Returns what a plan says of the registry, with the stage that exports; None where it says nothing."""
    registration = plan.recipe.tracking.registration
    if registration is None:
        return registration
    makers = {stage.name: load_target(stage.target) for stage in plan.stages}
    return replace(registration, stage=_exporting(registration, makers))


def _check_export(registration: Registration, makers: Mapping[str, type[Stage] | None]) -> Iterator[Fault]:
    exporting, key, given = _writers(makers, Export), f"{KEY}.stage", registration.stage
    if given is None and None in makers.values():
        return  # one of those that cannot be read may be the one
    if given is None and not exporting:
        yield Fault(key=key, message="no stage of this recipe writes an export, so there is nothing to register")
    elif given is None and len(exporting) > 1:
        yield Fault(key=key, message=f"must name one of the stages that export: {listed(exporting)}")
    elif given is not None and given not in makers:
        yield Fault(key=key, message=f"there is no stage {given!r}{suggestion(given, list(makers))}")
    elif given is not None and makers[given] is not None and given not in exporting:
        yield Fault(key=key, message=f"stage {given!r} writes no export; those that do: {listed(exporting)}")


def _check_model(evaluating: "Typed", exporting: "Typed", key: str) -> list[Fault]:
    """Refuses scores of another model than the exported one."""
    name = exporting.key.partition(".")[2]
    exported = {wire.text for wire in exporting.wires.values() if wire.kind.kind in MODELS}
    judged = {wire.text for wire in evaluating.wires.values() if wire.kind.kind in MODELS}
    itself = {f"{name}.{output}" for output in slots(exporting.cls.Outputs)} if exporting.cls else set()
    if judged & (exported | itself):
        return []
    models = f"{listed(sorted(judged))}, but {name} exports {listed(sorted(exported))}"
    return [Fault(key=key, message=f"evaluates {models}: its scores say nothing of that model")]


def _check_scores(
    wanted: Mapping[str, Mapping[str, str]], known: Mapping[str, Mapping[str, Any]] | None, key: str
) -> list[Fault]:
    """Lists the scores that an evaluation will not have, where it says which it will."""
    faults: list[Fault] = []
    if known is None:
        return faults
    for benchmark, scores in wanted.items():
        if benchmark not in known:
            message = f"{benchmark!r} is not evaluated there{suggestion(benchmark, list(known))}"
            faults.append(Fault(key=f"{key}.{benchmark}", message=message))
            continue
        for score in sorted(set(scores) - set(known[benchmark])):
            message = f"{benchmark} has no score {score!r}{suggestion(score, list(known[benchmark]))}"
            faults.append(Fault(key=f"{key}.{benchmark}.{score}", message=message))
    return faults


def _foreseen(stage: Stage | None) -> Mapping[str, Mapping[str, Any]] | None:
    """Returns the scores that a stage will have, by benchmark; None where it does not say."""
    if stage is None:
        return None
    for facts in stage.foresee({}).values():
        if "scores" in facts:
            scores: Mapping[str, Mapping[str, Any]] = facts["scores"]
            return scores
    return None


def _writers(makers: Mapping[str, type[Stage] | None], kind: type[Artifact]) -> list[str]:
    return [
        name
        for name, cls in makers.items()
        if cls is not None and any(slot.kind is kind for slot in slots(cls.Outputs).values())
    ]


def _exporting(registration: Registration, makers: Mapping[str, type[Stage] | None]) -> str:
    """Returns the stage that exports: the one that is named, or the only one; empty where neither is."""
    names = _writers(makers, Export)
    return registration.stage or (names[0] if len(names) == 1 else "")
