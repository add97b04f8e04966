"""Finds out what kind of weights a path holds, and opens them."""

import json
from pathlib import Path
from typing import Any

from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.training.foreign.adapters import SETTINGS
from orchestrator.training.foreign.pickles import SUFFIXES, open_pickle
from orchestrator.training.foreign.safetensors_files import SafetensorsFile
from orchestrator.training.foreign.source import Joined, TensorSource, few
from orchestrator.training.foreign.zero import looks_like_zero, open_zero

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_KNOWN = (
    "a .safetensors, .bin, .pth or .pt file, a Hugging Face folder (model.safetensors or pytorch_model.bin, whole or "
    "with an index), or a checkpoint of DeepSpeed"
)


def open_source(path: Path) -> TensorSource:
    """Opens weights of any layout that is known; reads no tensor yet."""
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        raise InputError(f"{path} is not there; needed is {_KNOWN}")
    for index in _INDICES:
        if (path / index).is_file():
            return _open_index(path, index)
    for name in _SINGLE:
        if (path / name).is_file():
            return _open_file(path / name)
    if looks_like_zero(path):
        return open_zero(path)
    if (path / SETTINGS).is_file():
        raise InputError(f"{path} is an adapter: it holds what to add to weights, and no weights of its own")
    held = few(sorted(entry.name for entry in path.iterdir()), 5) or "nothing"
    raise InputError(f"{path} holds {held}; needed is {_KNOWN}")


def _open_file(path: Path) -> TensorSource:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in SUFFIXES:
        return open_pickle(path)
    raise InputError(f"{path} is of no known kind; needed is {_KNOWN}")


def _open_index(folder: Path, name: str) -> TensorSource:
    path = folder / name
    try:
        weight_map: Any = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({str(file) for file in weight_map.values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedArtifact(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    if any(Path(file).name != file for file in files):
        raise InputError(f"{path} names files outside its folder")
    source = Joined(str(folder), [_open_file(folder / file) for file in files])
    if lacking := sorted(set(weight_map) - set(source.entries)):
        raise DamagedArtifact(f"{path} names {few(lacking)}, which its files lack")
    return source
