"""The one kind of data class: frozen, keyword-only, slotted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, dataclass_transform

INCIDENTAL = "incidental"
HIDDEN = "hidden"
PATH = "path"

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Makes `cls` an immutable record whose fields are given by name."""
    return dataclass(frozen=True, kw_only=True, slots=True)(cls)


def incidental(*, default: Any = None, default_factory: Callable[[], Any] | None = None) -> Any:
    """Declares a config field that cannot change what a stage computes, so it stays out of the fingerprint."""
    metadata = {INCIDENTAL: True}
    if default_factory is not None:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def hidden(*, default: Any = None) -> Any:
    """Declares a field that the program fills in and a recipe cannot name."""
    return field(default=default, metadata={HIDDEN: True})


def folder() -> Any:
    """Declares a config field of type Path that must be an existing folder; planning says so if it is not."""
    return field(metadata={PATH: "folder"})


def file() -> Any:
    """Declares a config field of type Path that must be an existing file; planning says so if it is not."""
    return field(metadata={PATH: "file"})
