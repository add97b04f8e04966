"""Finds out what kind of GLaMM a path holds, and makes an assistant of it."""

from pathlib import Path

import torch

from orchestrator.artifacts import Checkpoint, Export
from orchestrator.errors import InputError
from stages.exporting import CONFIG, INDEX
from stages.glamm.answer import GlammModel
from stages.glamm.assistant import Assistant
from stages.glamm.family import GlammFamily

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def open_assistant(path: Path, *, vision: Path | None, device: str | None, dtype: str) -> Assistant:
    """Opens what `stages.glamm.load` takes; a folder that is none of it is refused with what is needed."""
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is unknown; allowed: {', '.join(DTYPES)}")
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; needed is an export, a checkpoint, or a folder of published weights")
    return Assistant(_model(GlammFamily(device=device, dtype=DTYPES[dtype]), path, vision))


def _model(family: GlammFamily, path: Path, vision: Path | None) -> GlammModel:
    kind = _kind(path)
    if kind == Checkpoint.kind:
        return family.load(path)
    if kind == Export.kind or ((path / INDEX).is_file() and _is_ours(path)):
        return family.load_export(path)
    if kind is not None:
        raise InputError(f"{path} is a {kind}; needed is an export, a checkpoint, or a folder of published weights")
    if vision is None:
        raise InputError(
            f"{path} is neither an export nor a checkpoint. If it is a published GLaMM, name the folder of its CLIP, "
            "which it does not hold: vision='.../clip-vit-large-patch14-336'"
        )
    return family.adopt(path, vision)


def _kind(path: Path) -> str | None:
    try:
        manifest = Export(path).manifest()
    except ValueError:
        raise InputError(f"{path}: its manifest.json cannot be read") from None
    return None if manifest is None else str(manifest.get("kind"))


def _is_ours(path: Path) -> bool:
    """Tells whether it is an export that was copied without its manifest."""
    try:
        return '"blueprint"' in (path / CONFIG).read_text(encoding="utf-8")
    except OSError:
        return False
