"""The folder that an export is: safetensors in shards of bounded size, config, tokenizer, preprocessor, model card."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from orchestrator.artifacts import write_json
from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.records import record
from orchestrator.training.foreign.adapters import LowRank, Merged, Renamed
from orchestrator.training.foreign.source import TensorSource
from orchestrator.training.foreign.writing import write_shards
from orchestrator.training.holdings import saved_buffers
from orchestrator.training.weights import StoredWeights
from stages.glamm.collate import CLIP_MEAN, CLIP_STD, SAM_MEAN, SAM_STD
from stages.glamm.config import Blueprint, LoraConfig
from stages.glamm.tokenizer import FILES, Vocabulary

MODEL_TYPE = "glamm"
CONFIG, INDEX, PREPROCESSOR, CARD = (
    "config.json",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "README.md",
)
MAX_SHARD_BYTES = 2_000_000_000
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


@record
class Exported:
    """An export that looks whole: how to build its model, and where each weight lies."""

    directory: Path
    blueprint: Blueprint
    vocabulary: Vocabulary
    files: Mapping[str, tuple[str, ...]]  # file -> the tensors it holds


def write_export(
    checkpoint: Path,
    directory: Path,
    blueprint: Blueprint,
    vocabulary: Vocabulary,
    *,
    card: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, Any]:
    """Writes the folder, holding one tensor in memory at a time; returns facts."""
    facts = write_shards(_merged(checkpoint, blueprint.lora), directory, index=INDEX, max_shard_bytes=max_shard_bytes)
    for name, content in vocabulary.files().items():
        (directory / name).write_bytes(content)
    write_json(directory / PREPROCESSOR, _preprocessor(blueprint))
    (directory / CARD).write_text(card, encoding="utf-8")
    plain = {**blueprint.to_plain(), "lora": None}  # the adapters are merged
    write_json(directory / CONFIG, {"architectures": ["Glamm"], "model_type": MODEL_TYPE, "blueprint": plain})
    return facts


def read_export(directory: Path) -> Exported:
    """Reads all but the weights; a folder that is no export, or not a whole one, is refused by what it lacks."""
    config = _json(directory, CONFIG)
    if config.get("model_type") != MODEL_TYPE or not isinstance(config.get("blueprint"), dict):
        raise InputError(
            f"{directory} is no export of a GLaMM: {CONFIG} says model_type {config.get('model_type')!r}, needed are "
            f"{MODEL_TYPE!r} and a blueprint"
        )
    try:
        blueprint = Blueprint.from_plain(config["blueprint"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{directory / CONFIG}: its blueprint cannot be read ({error})") from None
    weight_map = _json(directory, INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(f"{directory / INDEX} has no weight_map")
    files: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise InputError(
                f"{directory / INDEX} names the file {file!r}; an export has model-00001-of-00001.safetensors"
            )
        files.setdefault(file, []).append(name)
    _expect_files(directory, [*FILES, *files])
    return Exported(
        directory=directory,
        blueprint=blueprint,
        vocabulary=Vocabulary.read(directory),
        files={file: tuple(names) for file, names in files.items()},
    )


def fill_from_export(model: nn.Module, found: Exported) -> None:
    """Copies every weight into the model; a missing, strange or misshapen one is refused."""
    wanted = {**dict(model.named_parameters()), **dict(saved_buffers(model))}
    listed = {name for names in found.files.values() for name in names}
    for word, strays in (("lacks", set(wanted) - listed), ("has the strange", listed - set(wanted))):
        if strays:
            raise DamagedArtifact(f"{found.directory / INDEX} {word} {_few(sorted(strays))}")
    for file, names in found.files.items():
        path = found.directory / file
        try:
            _fill_from_file(wanted, path, names)
        except (SafetensorError, OSError) as error:
            raise DamagedArtifact(f"{path} cannot be read: {error}") from None


def _fill_from_file(wanted: Mapping[str, Tensor], path: Path, names: Sequence[str]) -> None:
    with safe_open(path, framework="pt") as file, torch.no_grad():
        if lacking := sorted(set(names) - set(file.keys())):
            raise DamagedArtifact(f"{path} lacks {_few(lacking)}")
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


def _preprocessor(blueprint: Blueprint) -> dict[str, Any]:
    """Says how pictures are prepared, for those who read the export without this code."""
    side = blueprint.vision["image_size"]
    return {
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "vision_tower": {
            "size": {"shortest_edge": side} if blueprint.centre_crop else {"height": side, "width": side},
            "do_center_crop": blueprint.centre_crop,
            "crop_size": {"height": side, "width": side},
            "resample": 3,  # bicubic
            "image_mean": list(CLIP_MEAN),
            "image_std": list(CLIP_STD),
        },
        "sam": {
            "size": {"longest_edge": blueprint.canvas_px},
            "pad_size": {"height": blueprint.canvas_px, "width": blueprint.canvas_px},  # right and below
            "resample": 2,  # bilinear
            "image_mean": list(SAM_MEAN),
            "image_std": list(SAM_STD),
        },
        "num_image_tokens": blueprint.num_image_tokens,
    }


def _json(directory: Path, name: str) -> dict[str, Any]:
    _expect_files(directory, [name])
    try:
        plain = json.loads((directory / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{directory / name} cannot be read: {error}") from None
    if not isinstance(plain, dict):
        raise InputError(f"{directory / name} holds no JSON object")
    return plain


def _expect_files(directory: Path, names: Sequence[str]) -> None:
    if lacking := [name for name in names if not (directory / name).is_file()]:
        raise InputError(f"{directory} is no whole export of a GLaMM: there is no {_few(lacking)} in it")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
