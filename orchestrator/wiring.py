"""How stages hang together: which artifacts a stage takes and gives, and which of them a recipe names."""

import dataclasses
import functools
import importlib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Union

from orchestrator.artifacts import Artifact
from orchestrator.errors import Fault, InputError
from orchestrator.records import record
from orchestrator.stage import Stage
from orchestrator.typed import dotted, suggestion, unknown

KEPT = frozenset({"checkpoints", "logs"})  # folders that a stage has beside its outputs


@record
class Slot:
    """One input or output as its stage declares it."""

    name: str
    kind: type[Artifact]
    many: bool  # a mapping of names to artifacts
    optional: bool


@record
class Wire:
    """One artifact that a recipe gives to an input: an output of another stage, or a folder from elsewhere."""

    name: str  # "model", or "shards.grounded" in a mapping
    text: str  # as written
    kind: type[Artifact]  # what the input takes
    stage: str | None  # with `output`: where it comes from
    output: str | None
    path: Path | None  # of an artifact from elsewhere

    def artifact(self, run_dir: Path) -> Artifact:
        """Returns where the artifact lies, or will lie."""
        return self.kind(self.path or run_dir / (self.stage or "") / (self.output or ""))


@functools.cache
def load_target(target: str) -> type[Stage]:
    """Imports the class of "module:Class"."""
    module, _, name = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{target} cannot be loaded: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Stage)):
        raise InputError(f"{target} is no Stage")
    outputs = [field.name for field in dataclasses.fields(found.Outputs)]
    if not outputs or not KEPT.isdisjoint(outputs):
        kept = ", ".join(sorted(KEPT))
        raise InputError(f"{target} must declare Outputs (else nobody could tell when it is done), none named {kept}")
    return found


@functools.cache
def slots(declared: Any) -> dict[str, Slot]:
    """Returns the artifacts that a class `Inputs` or `Outputs` declares, by name."""
    hints = typing.get_type_hints(declared)
    return {field.name: _slot(field, hints[field.name]) for field in dataclasses.fields(declared)}


def wires_of(cls: type[Stage], inputs: Mapping[str, Any], key: str, faults: list[Fault]) -> dict[str, Wire]:
    """Reads the `inputs:` of a stage into wires by name; appends what is wrong with them."""
    taken = slots(cls.Inputs)
    faults.extend(unknown(inputs, list(taken), key))
    wires: list[Wire] = []
    for name, slot in taken.items():
        given, where = inputs.get(name), dotted(key, name)
        if given is None and slot.optional:
            continue
        if given is None:
            faults.append(Fault(key=where, message=f"is missing; needs {_wanted(slot)}"))
        elif slot.many and isinstance(given, Mapping):
            # in order of name: what a stage sees must not depend on the order in which a recipe lists it
            for item in sorted(given, key=str):
                wires += _wire(f"{name}.{item}", slot.kind, given[item], dotted(where, str(item)), faults)
            if not given and not slot.optional:
                faults.append(Fault(key=where, message=f"is empty; needs {_wanted(slot)}"))
        elif slot.many:
            faults.append(Fault(key=where, message=f"{given!r} is not a mapping; needs {_wanted(slot)}"))
        else:
            wires += _wire(name, slot.kind, given, where, faults)
    return {wire.name: wire for wire in wires}


def bind_inputs(cls: type[Stage], artifact: Callable[[str, type[Artifact]], Artifact], names: list[str]) -> Any:
    """Builds a stage's `Inputs` from the wired names ("model", "shards.grounded")."""
    values: dict[str, Any] = {}
    for name, slot in slots(cls.Inputs).items():
        if slot.many:
            items = [wired for wired in names if wired.partition(".")[0] == name]
            values[name] = {wired.partition(".")[2]: artifact(wired, slot.kind) for wired in items}
        else:
            values[name] = artifact(name, slot.kind) if name in names else None
    return cls.Inputs(**values)


def bind_outputs(cls: type[Stage], directory: Path) -> dict[str, Artifact]:
    """Returns where a stage's outputs lie in its folder, by name."""
    return {name: slot.kind(directory / name) for name, slot in slots(cls.Outputs).items()}


def _wire(name: str, kind: type[Artifact], given: Any, key: str, faults: list[Fault]) -> list[Wire]:
    text = str(given)
    if not isinstance(given, str):
        faults.append(Fault(key=key, message=f"{given!r} is neither STAGE.OUTPUT nor a path (a path has a slash)"))
    elif "/" in text:
        return [Wire(name=name, text=text, kind=kind, stage=None, output=None, path=Path(text))]
    else:
        stage, dot, output = text.partition(".")
        if stage and dot and output:
            return [Wire(name=name, text=text, kind=kind, stage=stage, output=output, path=None)]
        faults.append(Fault(key=key, message=f"{text!r} is neither STAGE.OUTPUT nor a path (a path has a slash)"))
    return []


def check_wire(wire: Wire, outputs: Mapping[str, type[Stage] | None], key: str) -> Fault | None:
    """Says what is wrong with a reference to another stage; None in `outputs` stands for a stage with faults."""
    if wire.stage is None:
        return None
    if wire.stage not in outputs:
        return Fault(
            key=key, message=f"{wire.text!r}: there is no stage {wire.stage!r}{suggestion(wire.stage, list(outputs))}"
        )
    maker = outputs[wire.stage]
    if maker is None:
        return None
    given = slots(maker.Outputs)
    output = wire.output or ""
    if output not in given:
        return Fault(
            key=key, message=f"{wire.text!r}: {wire.stage} has no output {output!r}{suggestion(output, list(given))}"
        )
    if not issubclass(given[output].kind, wire.kind):
        return Fault(key=key, message=f"{wire.text!r} is {given[output].kind.kind}, needs {wire.kind.kind}")
    return None


def _slot(field: dataclasses.Field[Any], hint: Any) -> Slot:
    arguments = typing.get_args(hint)
    nullable = typing.get_origin(hint) in (Union, types.UnionType) and type(None) in arguments
    if nullable:
        hint = next(argument for argument in arguments if argument is not type(None))
    many = typing.get_origin(hint) in (dict, Mapping)
    missing = dataclasses.MISSING
    defaulted = field.default is not missing or field.default_factory is not missing
    kind = typing.get_args(hint)[1] if many else hint
    return Slot(name=field.name, kind=kind, many=many, optional=nullable or defaulted)


def _wanted(slot: Slot) -> str:
    return f"a mapping of names to {slot.kind.kind}" if slot.many else f"{slot.kind.kind}: STAGE.OUTPUT or a path"
