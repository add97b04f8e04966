"""The folder that an export is: safetensors in shards of bounded size, config, tokenizer, preprocessor, model card."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from orchestrator.artifacts import write_json
from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.records import record
from orchestrator.training import elastic
from orchestrator.training.elastic import WEIGHTS
from orchestrator.training.holdings import saved_buffers
from orchestrator.training.weights import load_weights
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


@record
class _Source:
    """Which stored tensors become one exported tensor."""

    name: str
    stored: str
    adapter: tuple[str, str] | None  # names of A and B
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_export(
    checkpoint: Path,
    directory: Path,
    blueprint: Blueprint,
    vocabulary: Vocabulary,
    *,
    card: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, Any]:
    """Writes the folder, holding one shard in memory at a time; returns facts."""
    sources = _sources(checkpoint)
    shards = list(_shards(sources, max_shard_bytes))
    placed: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = _merged(shard, checkpoint, blueprint.lora)
        save_file(tensors, directory / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(tensors, file)
    parameters, size_bytes = sum(math.prod(s.shape) for s in sources), sum(s.size_bytes for s in sources)
    totals = {"total_parameters": parameters, "total_size": size_bytes}
    write_json(directory / INDEX, {"metadata": totals, "weight_map": dict(sorted(placed.items()))})
    for name, content in vocabulary.files().items():
        (directory / name).write_bytes(content)
    write_json(directory / PREPROCESSOR, _preprocessor(blueprint))
    (directory / CARD).write_text(card, encoding="utf-8")
    plain = {**blueprint.to_plain(), "lora": None}  # the adapters are merged
    write_json(directory / CONFIG, {"architectures": ["Glamm"], "model_type": MODEL_TYPE, "blueprint": plain})
    return {"parameters": parameters, "size_bytes": size_bytes, "tensors": len(placed), "shards": len(shards)}


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


def _sources(checkpoint: Path) -> list[_Source]:
    """Plans the exported tensors: a linear layer with adapters becomes one weight, as exact as its most exact part."""
    directory = checkpoint / WEIGHTS
    stored = elastic.tensors(directory)
    dtypes = {name: elastic.dtype_named(entry["dtype"], directory) for name, entry in stored.items()}
    sources = []
    for name in sorted(stored):
        if ".lora_A." in name or ".lora_B." in name:
            continue
        shape, dtype, adapter = tuple(stored[name]["shape"]), dtypes[name], None
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix("base_layer.weight")
            adapter = (f"{layer}lora_A.default.weight", f"{layer}lora_B.default.weight")
            for part in adapter:
                if part not in stored:
                    raise DamagedArtifact(f"{directory} lacks {part}")
                dtype = torch.promote_types(dtype, dtypes[part])
        plain = name.replace(".base_layer.", ".")
        sources.append(_Source(name=plain, stored=name, adapter=adapter, shape=shape, dtype=dtype))
    return sources


def _shards(sources: Sequence[_Source], max_bytes: int) -> Iterator[list[_Source]]:
    shard: list[_Source] = []
    size = 0
    for source in sources:
        if shard and size + source.size_bytes > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append(source)
        size += source.size_bytes
    if shard:
        yield shard


def _merged(shard: Sequence[_Source], checkpoint: Path, lora: LoraConfig | None) -> dict[str, Tensor]:
    """Reads the weights of one shard, adapters added to what they adapt."""
    names = {source.stored for source in shard} | {part for source in shard for part in source.adapter or ()}
    parts = load_weights(checkpoint, names=names)
    tensors = {}
    for source in shard:
        tensor = parts[source.stored]
        if source.adapter is not None:
            if lora is None:
                raise DamagedArtifact(f"{checkpoint} has adapters, but its manifest describes none")
            down, up = (parts[name].double() for name in source.adapter)
            tensor = (tensor.double() + lora.alpha / lora.rank * (up @ down)).to(source.dtype)
        tensors[source.name] = tensor
    return tensors


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
