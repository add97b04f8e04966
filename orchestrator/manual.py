"""Describes every stage a recipe can name: the reference manual is the code."""

import importlib
import inspect
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from orchestrator.errors import InputError, OrchError
from orchestrator.plan import Catalog
from orchestrator.typed import suggestion

if TYPE_CHECKING:
    from orchestrator.stage import Stage


def describe_stages(catalog: Catalog, name: str | None = None) -> list[dict[str, Any]]:
    """Describes one stage or all: {name, target, doc, inputs, outputs, config: [{key, type, required, default}]}."""
    if name is not None and name not in catalog.stages:
        raise InputError(f"there is no stage {name!r}{suggestion(name, tuple(catalog.stages))}")
    return [_describe(key, target) for key, target in catalog.stages.items() if name in {None, key}]


def manual_lines(described: Sequence[Mapping[str, Any]], *, in_full: bool) -> Iterator[str]:
    """Writes the descriptions for people: a line each, or everything."""
    width = max(len(stage["name"]) for stage in described)
    for stage in described:
        if not in_full:
            yield f"{stage['name']:<{width}}  {stage['doc'].partition(chr(10))[0]}"
            continue
        yield f"{stage['name']} ({stage['target']})\n\n{stage['doc']}\n"
        for title in ("inputs", "outputs"):
            yield from (f"{title}.{name}: {kind}" for name, kind in stage[title].items())
        for entry in stage["config"]:
            default = "needed" if entry["required"] else f"= {json.dumps(entry['default'])}"
            yield f"config.{entry['key']}: {entry['type']}  {default}"


def _describe(name: str, target: str) -> dict[str, Any]:
    module, _, cls = target.partition(":")
    try:
        stage = cast("type[Stage]", getattr(importlib.import_module(module), cls))
    except (ImportError, AttributeError) as error:
        raise OrchError(f"the stage {name} cannot be imported from {target}: {error}") from error
    return {
        "name": name,
        "target": target,
        "doc": inspect.getdoc(stage) or "",
        "inputs": _types_of(stage.Inputs),
        "outputs": _types_of(stage.Outputs),
        "config": list(_keys(stage.Config, "")),
    }


def _types_of(cls: type) -> dict[str, str]:
    hints = typing.get_type_hints(cls)
    return {field.name: _type_name(hints[field.name]) for field in fields(cls)}


def _keys(cls: type, prefix: str) -> Iterator[dict[str, Any]]:
    hints = typing.get_type_hints(cls)
    for field in fields(cls):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _keys(hint, f"{key}.")
            continue
        default = _default(field)
        shown: Mapping[str, Any] = {} if default is MISSING else {"default": _plain(default)}
        yield {"key": key, "type": _type_name(hint), "required": default is MISSING, **shown}


def _default(field: "Field[Any]") -> Any:
    if field.default is not MISSING:
        return field.default
    return MISSING if field.default_factory is MISSING else field.default_factory()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(repr(argument) for argument in arguments)
    if origin in {typing.Union, types.UnionType}:
        return " | ".join(_type_name(argument) for argument in arguments)
    if origin is not None:
        inside = ", ".join("..." if argument is Ellipsis else _type_name(argument) for argument in arguments)
        return f"{_type_name(origin)}[{inside}]"
    if hint is type(None):
        return "null"
    if hint is Path:
        return "path"
    return hint.__name__ if isinstance(hint, type) else str(hint)
