"""Breaks raw data in tests, and reads what the conversion says about it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.stages.conversion import Converted


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file in place; NaN and half characters are written as JSON writers do."""
    plain = json.loads(path.read_text(encoding="utf-8"))
    change(plain)
    path.write_text(json.dumps(plain), encoding="utf-8")


def edit_line(path: Path, number: int, change: Callable[[Any], Any]) -> None:
    """Changes one line of a file with a JSON value a line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    plain = json.loads(lines[number])
    change(plain)
    lines[number] = json.dumps(plain)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def reasons(made: Converted) -> dict[str, int]:
    """Returns how often each reason to leave something out occurred."""
    return dict(made.facts["skipped"]["reasons"])


def skipped(made: Converted) -> list[dict[str, str]]:
    """Returns the report of what was left out."""
    return [json.loads(line) for line in (made.directory / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
