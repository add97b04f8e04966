"""Writes safetensors files of bounded size, one tensor in memory at a time.

A header of JSON says where each tensor lies, which shapes and types decide before any is read; then come plain bytes.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.artifacts import write_json
from orchestrator.errors import InputError, SurroundingsError
from orchestrator.training.foreign.safetensors_files import DTYPES
from orchestrator.training.foreign.source import Entry, TensorSource

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8  # bytes; what readers that map the file expect of the header's end


def write_shards(source: TensorSource, directory: Path, *, index: str, max_shard_bytes: int) -> dict[str, Any]:
    """Writes all tensors of a source and the index that says which file holds which; returns facts.

    A tensor larger than the bound gets a file of its own.
    """
    _check(source, directory)
    shards = list(_shards(source.entries, max_shard_bytes))
    placed: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(source, names, directory / file)
        placed |= dict.fromkeys(names, file)
    facts = {**_sizes(source), "shards": len(shards)}
    totals = {"total_parameters": facts["parameters"], "total_size": facts["size_bytes"]}
    write_json(directory / index, {"metadata": totals, "weight_map": dict(sorted(placed.items()))})
    return facts


def write_file(source: TensorSource, path: Path) -> dict[str, Any]:
    """Writes all tensors of a source into one file; returns facts."""
    _check(source, path.parent)
    _write(source, list(source.entries), path)
    return {**_sizes(source), "shards": 1}


def _sizes(source: TensorSource) -> dict[str, int]:
    parameters = sum(math.prod(entry.shape) for entry in source.entries.values())
    size_bytes = sum(entry.size_bytes for entry in source.entries.values())
    return {"parameters": parameters, "size_bytes": size_bytes, "tensors": len(source.entries)}


def _check(source: TensorSource, directory: Path) -> None:
    for name, entry in source.entries.items():
        if entry.dtype not in _NAMES:
            raise InputError(f"{source.label}: {name} is {entry.dtype}, which safetensors cannot hold")
    needed, free = sum(entry.size_bytes for entry in source.entries.values()), shutil.disk_usage(directory).free
    if needed > free:
        raise SurroundingsError(
            f"{directory}: the weights take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        )


def _shards(entries: Mapping[str, Entry], max_bytes: int) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for name, entry in entries.items():
        if shard and size + entry.size_bytes > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += entry.size_bytes
    if shard:
        yield shard


def _write(source: TensorSource, names: Sequence[str], path: Path) -> None:
    """Writes one file by rename: a killed process leaves no half of one under its name."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as file:
            file.write(_header({name: source.entries[name] for name in names}))
            for name in names:
                file.write(_bytes(source.read(name), source.entries[name], name))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise SurroundingsError(f"{path}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)


def _header(entries: Mapping[str, Entry]) -> bytes:
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, entry in entries.items():
        end = offset + entry.size_bytes
        described[name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor, entry: Entry, name: str) -> memoryview:
    """Views a tensor as what is written of it, without a copy."""
    assert (tuple(tensor.shape), tensor.dtype) == (entry.shape, entry.dtype), name  # noqa: S101 - the source said so
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
