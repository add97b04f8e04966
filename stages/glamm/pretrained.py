"""Fills the parts of a model from Hugging Face folders, tensor by tensor, whole or partitioned by ZeRO-3."""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.errors import InputError
from orchestrator.records import record
from orchestrator.training.optim import whole_shape
from stages.glamm.config import GlammConfig
from stages.glamm.initial import fill

log = logging.getLogger(__name__)

GROWING = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


@record
class Filled:
    """What came of filling a model from folders."""

    loaded: frozenset[str]  # names of the model
    missing: tuple[str, ...]  # in the model's part, not in its folder
    unused: tuple[str, ...]  # in the folder, not in the model


def fill_from_folders(model: nn.Module, config: GlammConfig) -> Filled:
    """Fills every part whose folder is named; each rank reads the files and keeps what it holds."""
    loaded: set[str] = set()
    missing: list[str] = []
    unused: list[str] = []
    for prefix, folder in _folders(config):
        wanted = {name: p for name, p in model.named_parameters() if name.startswith(prefix)}
        found, strays = _fill_part(wanted, prefix, folder)
        lacking = sorted(set(wanted) - found - {name for name in wanted if "lora_" in name})
        log.info("%s: %d tensors loaded, %d missing, %d unused", folder, len(found), len(lacking), len(strays))
        for word, names in (("missing", lacking), ("unused", strays)):
            if names:
                log.info("%s in %s: %s", word, folder, ", ".join(names))
        loaded |= found
        missing += lacking
        unused += strays
    return Filled(loaded=frozenset(loaded), missing=tuple(missing), unused=tuple(unused))


def _folders(config: GlammConfig) -> list[tuple[str, Path]]:
    parts = (
        ("language_model.", config.language.path),
        ("vision_tower.", config.vision.path),
        ("sam.", config.grounding.path),
    )
    return [(prefix, path) for prefix, path in parts if path is not None]


def _fill_part(wanted: Mapping[str, Tensor], prefix: str, folder: Path) -> tuple[set[str], list[str]]:
    # under LoRA a linear layer keeps its weight one level deeper
    names = {name.replace(".base_layer.", "."): name for name in wanted}
    found: set[str] = set()
    strays: list[str] = []
    for stored, tensor in _tensors(folder):
        name = names.get(prefix + stored.removeprefix("vision_model.").removeprefix("sam."))
        if name is None:
            strays.append(stored)
            continue
        shape = whole_shape(wanted[name])
        full = _grown(tensor, shape[0]) if name in GROWING and tensor.shape[0] < shape[0] else tensor
        if full.shape != shape:
            raise InputError(f"{folder}: {stored} has the shape {tuple(tensor.shape)}, the model needs {tuple(shape)}")
        fill(wanted[name], full)
        found.add(name)
    return found, strays


def _grown(rows: Tensor, count: int) -> Tensor:
    """Adds rows for new tokens: the mean of the old ones, which no token is far from."""
    return torch.cat([rows, rows.float().mean(0, keepdim=True).to(rows.dtype).expand(count - rows.shape[0], -1)])


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for path in _files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, file.get_tensor(name)


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        entries: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        names = sorted({str(name) for name in entries["weight_map"].values()})
        if any(Path(name).name != name for name in names):
            raise InputError(f"{index} names files outside its folder")
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    raise InputError(
        f"{folder} holds no model.safetensors; .bin files are pickles and not opened: convert them to safetensors"
    )
