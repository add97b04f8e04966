"""Model folders in the layout of Hugging Face transformers: is one there, what it says, if it changed. No torch."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError


def folder_fault(path: Path | None) -> str | None:
    """Says what is wrong with a folder that a recipe names; None where nothing is, or none is named."""
    if path is None or (path / "config.json").is_file():
        return None
    return f"{path} has no config.json: give a model folder in the layout of Hugging Face transformers"


def read_settings(folder: Path) -> dict[str, Any]:
    """Reads the config.json of a model folder; InputError if there is none that can be read."""
    try:
        settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}/config.json cannot be read: {error}") from error
    return settings


def read_vision_settings(folder: Path) -> dict[str, Any]:
    """Reads what a model folder says of its image encoder: it may hold both halves of CLIP, or all of SAM."""
    settings = read_settings(folder)
    inner: dict[str, Any] = settings.get("vision_config", settings)
    return inner


def stamps_of(paths: Iterable[Path | None]) -> dict[str, str]:
    """Tells size and time of change of files, and of those in folders. Their content would take minutes to read."""
    there = [path for path in paths if path is not None]
    # two levels: what DeepSpeed names by `latest` lies one deeper
    below = [file for path in there for form in ("*", "*/*") for file in sorted(path.glob(form))]
    return {str(one): f"{one.stat().st_size}:{one.stat().st_mtime_ns}" for one in (*there, *below) if one.is_file()}
