"""The folder that an export of a GLaMM is: weights, config, tokenizer, preprocessor, model card."""

from pathlib import Path
from typing import Any

from orchestrator.artifacts import write_json
from orchestrator.errors import InputError
from orchestrator.records import record
from stages.exporting import (
    CONFIG,
    MAX_SHARD_BYTES,
    PREPROCESSOR,
    Opened,
    open_export,
    write_description,
    write_weights,
)
from stages.glamm.config import Blueprint
from stages.glamm.tokenizer import FILES, Vocabulary
from stages.vision import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD

MODEL, MODEL_TYPE = "Glamm", "glamm"


@record
class Exported:
    """An export that looks whole: how to build its model, and where each weight lies."""

    blueprint: Blueprint
    vocabulary: Vocabulary
    opened: Opened


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
    facts = write_weights(checkpoint, directory, blueprint.lora, max_shard_bytes=max_shard_bytes)
    for name, content in vocabulary.files().items():
        (directory / name).write_bytes(content)
    write_json(directory / PREPROCESSOR, _preprocessor(blueprint))
    plain = {**blueprint.to_plain(), "lora": None}  # the adapters are merged
    write_description(directory, model=MODEL, model_type=MODEL_TYPE, blueprint=plain, card=card)
    return facts


def read_export(directory: Path) -> Exported:
    """Reads all but the weights; a folder that is no export, or not a whole one, is refused by what it lacks."""
    opened = open_export(directory, model="GLaMM", model_type=MODEL_TYPE, files=FILES)
    try:
        blueprint = Blueprint.from_plain(opened.blueprint)
    except (KeyError, TypeError) as error:
        raise InputError(f"{directory / CONFIG}: its blueprint cannot be read ({error})") from None
    return Exported(blueprint=blueprint, vocabulary=Vocabulary.read(directory), opened=opened)


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
            "image_mean": list(IMAGENET_MEAN),
            "image_std": list(IMAGENET_STD),
        },
        "num_image_tokens": blueprint.num_image_tokens,
    }
