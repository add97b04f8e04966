"""What the exports of all families share: safetensors in shards of bounded size, and config.json with a blueprint."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from orchestrator.artifacts import write_json
from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.records import record
from orchestrator.training.foreign.adapters import LowRank, Merged, Renamed
from orchestrator.training.foreign.source import TensorSource, few
from orchestrator.training.foreign.writing import write_shards
from orchestrator.training.holdings import saved_buffers
from orchestrator.training.weights import StoredWeights
from stages.adapters import LoraConfig

CONFIG, INDEX, PREPROCESSOR, CARD = (
    "config.json",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "README.md",
)
MAX_SHARD_BYTES = 2_000_000_000
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


@record
class Opened:
    """An export that looks whole: how its model is to be built, and where each weight lies."""

    directory: Path
    blueprint: Mapping[str, Any]  # as the family wrote it
    files: Mapping[str, tuple[str, ...]]  # file -> the tensors it holds


def write_weights(
    checkpoint: Path, directory: Path, lora: LoraConfig | None, *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict[str, Any]:
    """Writes all weights of a checkpoint, adapters merged, holding one tensor in memory at a time; returns facts."""
    return write_shards(_merged(checkpoint, lora), directory, index=INDEX, max_shard_bytes=max_shard_bytes)


def write_description(
    directory: Path,
    *,
    model: str,
    model_type: str,
    blueprint: Mapping[str, Any],
    card: str,
    others: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Writes config.json and the model card; `others` is what further readers look for in config.json."""
    (directory / CARD).write_text(card, encoding="utf-8")
    plain = {**others, "architectures": [model], "model_type": model_type, "blueprint": dict(blueprint)}
    write_json(directory / CONFIG, plain)


def padded_preprocessor(side_px: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Says in Hugging Face's terms that pictures are scaled to a square, bilinearly, and padded right and below."""
    return {
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "size": {"longest_edge": side_px},
        "pad_size": {"height": side_px, "width": side_px},
        "resample": 2,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def open_export(directory: Path, *, model: str, model_type: str, files: Sequence[str] = ()) -> Opened:
    """Reads all but the weights; a folder that is no export of a `model`, or not a whole one, is refused.

    `files` are further ones that belong to it.
    """
    config = _json(directory, CONFIG, model)
    if config.get("model_type") != model_type or not isinstance(config.get("blueprint"), dict):
        raise InputError(
            f"{directory} is no export of a {model}: {CONFIG} says model_type {config.get('model_type')!r}, needed are "
            f"{model_type!r} and a blueprint"
        )
    weight_map = _json(directory, INDEX, model).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(f"{directory / INDEX} has no weight_map")
    placed: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise InputError(
                f"{directory / INDEX} names the file {file!r}; an export has model-00001-of-00001.safetensors"
            )
        placed.setdefault(file, []).append(name)
    _expect_files(directory, [*files, *placed], model)
    return Opened(
        directory=directory,
        blueprint=config["blueprint"],
        files={file: tuple(names) for file, names in placed.items()},
    )


def fill_from_export(module: nn.Module, found: Opened) -> None:
    """Copies every weight into the model; a missing, strange or misshapen one is refused."""
    wanted = {**dict(module.named_parameters()), **dict(saved_buffers(module))}
    listed = {name for names in found.files.values() for name in names}
    for word, strays in (("lacks", set(wanted) - listed), ("has the strange", listed - set(wanted))):
        if strays:
            raise DamagedArtifact(f"{found.directory / INDEX} {word} {few(sorted(strays))}")
    for file, names in found.files.items():
        path = found.directory / file
        try:
            _fill_from_file(wanted, path, names)
        except (SafetensorError, OSError) as error:
            raise DamagedArtifact(f"{path} cannot be read: {error}") from None


def _fill_from_file(wanted: Mapping[str, Tensor], path: Path, names: Sequence[str]) -> None:
    with safe_open(path, framework="pt") as file, torch.no_grad():
        if lacking := sorted(set(names) - set(file.keys())):
            raise DamagedArtifact(f"{path} lacks {few(lacking)}")
        for name in names:
            tensor = file.get_tensor(name)
            if tensor.shape != wanted[name].shape:
                raise DamagedArtifact(
                    f"{path}: {name} has the shape {tuple(tensor.shape)}, needed is {tuple(wanted[name].shape)}"
                )
            wanted[name].copy_(tensor)


def _merged(checkpoint: Path, lora: LoraConfig | None) -> TensorSource:
    """Plans the exported tensors: a linear layer with adapters becomes one weight, as exact as its most exact part."""
    stored = StoredWeights(checkpoint)
    adapted = [name for name in stored.entries if name.endswith(".base_layer.weight")]
    if adapted and lora is None:
        raise DamagedArtifact(f"{checkpoint} has adapters, but its manifest describes none")
    added = {}
    for name in adapted:
        layer = name.removesuffix("base_layer.weight")
        assert lora is not None  # noqa: S101 - just checked
        down, up = (f"{layer}lora_{part}.default.weight" for part in "AB")
        added[name] = LowRank(down=down, up=up, scale=lora.alpha / lora.rank)
    plain = {
        name.replace(".base_layer.", "."): name
        for name in sorted(stored.entries)
        if ".lora_A." not in name and ".lora_B." not in name
    }
    return Renamed(Merged(stored, stored, added, {}), plain)


def _json(directory: Path, name: str, model: str) -> dict[str, Any]:
    _expect_files(directory, [name], model)
    try:
        plain = json.loads((directory / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{directory / name} cannot be read: {error}") from None
    if not isinstance(plain, dict):
        raise InputError(f"{directory / name} holds no JSON object")
    return plain


def _expect_files(directory: Path, names: Sequence[str], model: str) -> None:
    if lacking := [name for name in names if not (directory / name).is_file()]:
        raise InputError(f"{directory} is no whole export of a {model}: there is no {few(lacking)} in it")
