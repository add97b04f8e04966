"""Plain data from YAML or JSON to typed records, and back; everything that is wrong is found in one pass."""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

from omegaconf import BooleanNode, FloatNode, IntegerNode, PathNode, StringNode, ValueNode
from omegaconf.errors import OmegaConfBaseException

from orchestrator.errors import Fault, OrchError
from orchestrator.records import HIDDEN

T = TypeVar("T")

WANTED: Mapping[type, tuple[Callable[..., ValueNode], str]] = {
    bool: (BooleanNode, "true or false"),
    int: (IntegerNode, "a whole number"),
    float: (FloatNode, "a number"),
    str: (StringNode, "text"),
    Path: (PathNode, "a path"),
}


def typed(cls: type[T], plain: Any, key: str, faults: list[Fault]) -> T | None:
    """Builds a record of class `cls` from plain data; appends to `faults` everything that is wrong with it.

    `key` is the dotted key of `plain` itself. The result is as good as the faults allow, so that what refers to it
    can be checked too; it is None where nothing can be built. Whoever runs something looks at `faults` first.
    """
    names: Sequence[str] = allowed(cast("Any", cls))
    if not isinstance(plain, Mapping):
        faults.append(Fault(key=key, message=f"{plain!r} is not a mapping; allowed keys: {listed(names)}"))
        return None
    before = len(faults)
    faults.extend(unknown(plain, names, key))
    given: dict[str, Any] = {}
    missing = False
    for name, annotation, required in _fields(cast("Any", cls)):
        if name not in plain:
            missing |= required
            if required:
                faults.append(Fault(key=dotted(key, name), message=f"is missing; needs {_wanted(annotation)}"))
            continue
        found = len(faults)
        value = convert(annotation, plain[name], dotted(key, name), faults)
        if len(faults) == found or value is not None:
            given[name] = value
        else:
            missing |= required
    return None if missing else _build(cls, given, key, faults, told={fault.key for fault in faults[before:]})


def convert(annotation: Any, value: Any, key: str, faults: list[Fault]) -> Any:
    """Converts a value to what an annotation asks for; appends a fault and returns None where that cannot be."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    result = value
    if origin in (Union, types.UnionType):
        result = _union(arguments, value, key, faults)
    elif origin is Literal:
        result = _literal(arguments, value, key, faults)
    elif dataclasses.is_dataclass(annotation):
        result = typed(cast("type[Any]", annotation), value, key, faults)
    elif origin in (dict, Mapping):
        result = _mapping(arguments, value, key, faults)
    elif origin in (list, tuple, Sequence):
        result = _sequence(origin, arguments, value, key, faults)
    elif annotation is not Any:
        result = _scalar(annotation, value, key, faults)
    return result


def plain(value: Any, *, skip: str | None = None) -> Any:
    """Returns records as plain JSON data: paths as text, tuples as lists; without fields whose metadata has `skip`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name), skip=skip)
            for field in dataclasses.fields(value)
            if field.metadata.get(HIDDEN) is None and (skip is None or field.metadata.get(skip) is None)
        }
    if isinstance(value, Mapping):
        return {name: plain(item, skip=skip) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item, skip=skip) for item in value]
    return str(value) if isinstance(value, Path) else value


def unknown(names: Iterable[Any], allowed: Sequence[str], key: str) -> list[Fault]:
    """Lists the names that are not allowed, each with the one that was probably meant."""
    return [
        Fault(key=dotted(key, str(name)), message=f"is not known here{suggestion(str(name), allowed)}")
        for name in names
        if name not in allowed
    ]


def suggestion(name: str, allowed: Sequence[str]) -> str:
    """Says what was probably meant and what is allowed, to end a message with."""
    close = get_close_matches(name, allowed, n=1, cutoff=0.5)
    meant = f"; did you mean '{close[0]}'?" if close else ";"
    return f"{meant} allowed: {listed(allowed)}"


def listed(names: Sequence[str]) -> str:
    """Writes names as a list for a message."""
    return ", ".join(names) if names else "nothing"


def dotted(key: str, name: str) -> str:
    """Appends a name to a dotted key."""
    return f"{key}.{name}" if key else name


@functools.cache
def allowed(cls: Any) -> tuple[str, ...]:
    """Returns the keys that a record of this class takes."""
    return tuple(name for name, _, _ in _fields(cls))


@functools.cache
def _fields(cls: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Returns name, annotation and whether it must be given, of each field that a user may write."""
    hints = typing.get_type_hints(cls)
    missing = dataclasses.MISSING
    return tuple(
        (field.name, hints[field.name], field.default is missing and field.default_factory is missing)
        for field in dataclasses.fields(cls)
        if field.init and field.metadata.get(HIDDEN) is None
    )


def _build(cls: type[T], given: dict[str, Any], key: str, faults: list[Fault], *, told: set[str]) -> T | None:
    try:
        return cls(**given)
    except (OrchError, TypeError, ValueError) as error:
        fault = _fault_of(str(error), cls, given, key)
        named = any(fault.key == dotted(key, name) for name in given)
        if not told or (named and fault.key not in told):  # otherwise it may only echo what is already told
            faults.append(fault)
    return None


def _fault_of(message: str, cls: type, given: Mapping[str, Any], key: str) -> Fault:
    """Gives the message of a record's own check the key of the field that it opens with."""
    first, _, rest = message.partition(" ")
    name = first.partition(".")[0].rstrip(":,")
    if name not in allowed(cls) or not rest:
        return Fault(key=key, message=message)
    value = given.get(name)
    told = value is None or isinstance(value, Mapping | Sequence) or dataclasses.is_dataclass(value)
    shown = "" if told or str(value) in rest else f", not {value}"
    return Fault(key=dotted(key, first.rstrip(":,")), message=rest + shown)


def _union(arguments: tuple[Any, ...], value: Any, key: str, faults: list[Fault]) -> Any:
    if value is None and type(None) in arguments:
        return None
    choices = [choice for choice in arguments if choice is not type(None)]
    exact = [choice for choice in choices if type(value) is choice or _is_of(choice, value)]
    attempts: list[list[Fault]] = []
    for choice in exact or choices:
        found: list[Fault] = []
        result = convert(choice, value, key, found)
        if not found:
            return result
        attempts.append(found)
    fewest = min(attempts, key=len)
    faults.extend(fewest)
    return None


def _is_of(choice: Any, value: Any) -> bool:
    """Tells whether a value can only be meant for this choice: a mapping for a record."""
    return isinstance(value, Mapping) and dataclasses.is_dataclass(choice)


def _literal(arguments: tuple[Any, ...], value: Any, key: str, faults: list[Fault]) -> Any:
    if value in arguments and type(value) in {type(argument) for argument in arguments}:
        return value
    names = [str(argument) for argument in arguments]
    faults.append(Fault(key=key, message=f"{value!r} is not one of the choices{suggestion(str(value), names)}"))
    return None


def _mapping(arguments: tuple[Any, ...], value: Any, key: str, faults: list[Fault]) -> Any:
    if not isinstance(value, Mapping):
        faults.append(Fault(key=key, message=f"{value!r} is not a mapping"))
        return None
    result = {}
    for name, item in value.items():
        before = len(faults)
        named = convert(arguments[0], name, dotted(key, str(name)), faults)
        converted = convert(arguments[1], item, dotted(key, str(name)), faults)
        if len(faults) == before or converted is not None:
            result[named] = converted
    return result


def _sequence(origin: Any, arguments: tuple[Any, ...], value: Any, key: str, faults: list[Fault]) -> Any:
    if not isinstance(value, list | tuple):
        faults.append(Fault(key=key, message=f"{value!r} is not a list"))
        return None
    endless = origin is not tuple or arguments[-1] is Ellipsis
    if not endless and len(value) != len(arguments):
        faults.append(Fault(key=key, message=f"needs {len(arguments)} values, has {len(value)}: {list(value)!r}"))
        return None
    wanted = [arguments[0]] * len(value) if endless else arguments
    pairs = enumerate(zip(wanted, value, strict=True))
    items = [convert(annotation, item, dotted(key, str(position)), faults) for position, (annotation, item) in pairs]
    return items if origin is list else tuple(items)


def _scalar(annotation: Any, value: Any, key: str, faults: list[Fault]) -> Any:
    if type(value) is annotation:
        return value
    node, _ = WANTED[annotation]  # a config field of another type is a mistake of the stage, not of the recipe
    try:
        if value is not None and not isinstance(value, Mapping | list | tuple):
            return node(value, is_optional=False)._value()  # noqa: SLF001 - the public way needs a container around it
    except OmegaConfBaseException:
        pass
    faults.append(Fault(key=key, message=f"{value!r} is not {_wanted(annotation)}"))
    return None


def _wanted(annotation: Any) -> str:
    """Says in words what an annotation asks for."""
    if annotation in WANTED:
        return WANTED[annotation][1]
    if typing.get_origin(annotation) is Literal:
        return "one of " + listed([str(argument) for argument in typing.get_args(annotation)])
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_wanted(choice) for choice in typing.get_args(annotation) if choice is not type(None))
    if typing.get_origin(annotation) in (list, tuple, Sequence):
        return "a list"
    return "a mapping" if dataclasses.is_dataclass(annotation) or typing.get_args(annotation) else "a value"
