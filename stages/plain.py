"""Checks plain data out of JSON: which keys, of which types, and the place named where they are not."""

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from orchestrator.errors import InputError

NUMBER = (int, float)


def checked(
    plain: Any, fields: Mapping[str, Any], where: str, optional: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Returns the mapping if it has these fields, and at most the optional ones besides, of these types."""
    known = {**fields, **optional}
    if not isinstance(plain, dict):
        raise InputError(f"{where}: {type(plain).__name__} given, a mapping of {', '.join(fields)} is needed")
    if unknown := sorted(set(plain) - set(known)):
        close = get_close_matches(unknown[0], known, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ";"
        raise InputError(f"{where}: unknown key {', '.join(unknown)}{meant} allowed: {', '.join(known)}")
    if missing := [name for name in fields if name not in plain]:
        raise InputError(f"{where}: {', '.join(missing)} missing")
    for name, value in plain.items():
        kind = known[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{where}.{name}: {value!r:.60} is of the wrong type")
    return plain


def numbers(values: Any, count: int, where: str) -> list[float]:
    """Returns the values if they are a list of so many numbers."""
    right = isinstance(values, list) and len(values) == count
    if not right or not all(_is_number(value) for value in values):
        raise InputError(f"{where}: {values!r:.60} given, {count} numbers are needed")
    return list(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300  # false for nan
