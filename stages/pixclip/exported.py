"""The folder that an export of a PixCLIP is: weights, config, tokenizer if it has one, preprocessor, model card."""

from pathlib import Path
from typing import Any

from orchestrator.artifacts import write_json
from orchestrator.errors import InputError
from orchestrator.records import record
from stages.exporting import CONFIG, PREPROCESSOR, Opened, open_export, write_description, write_weights
from stages.pixclip.config import FAMILY, Blueprint
from stages.pixclip.squares import MASK_MEAN, MASK_STD
from stages.vision import CLIP_MEAN, CLIP_STD
from stages.wordpieces import WordPieces

MODEL = "PixClip"


@record
class Exported:
    """An export that looks whole: how to build its model, and where each weight lies."""

    blueprint: Blueprint
    pieces: WordPieces | None
    opened: Opened


def write_export(
    checkpoint: Path, directory: Path, blueprint: Blueprint, pieces: WordPieces | None, *, card: str
) -> dict[str, Any]:
    """Writes the folder, holding one tensor in memory at a time; returns facts."""
    facts = write_weights(checkpoint, directory, None)
    for name, content in ({} if pieces is None else pieces.files()).items():
        (directory / name).write_bytes(content)
    write_json(directory / PREPROCESSOR, _preprocessor(blueprint))
    write_description(directory, model=MODEL, model_type=FAMILY, blueprint=blueprint.to_plain(), card=card)
    return facts


def read_export(directory: Path) -> Exported:
    """Reads all but the weights; a folder that is no export, or not a whole one, is refused by what it lacks."""
    opened = open_export(directory, model=MODEL, model_type=FAMILY)
    try:
        blueprint = Blueprint.from_plain(opened.blueprint)
    except (KeyError, TypeError) as error:
        raise InputError(f"{directory / CONFIG}: its blueprint cannot be read ({error})") from None
    pieces = None if blueprint.text is None else WordPieces.read(directory)
    return Exported(blueprint=blueprint, pieces=pieces, opened=opened)


def _preprocessor(blueprint: Blueprint) -> dict[str, Any]:
    """Says how pictures and masks are prepared, for those who read the export without this code."""
    side = blueprint.side_px
    return {
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_pad": True,  # to a square, black, the image in the middle; before it is resized
        "size": {"height": side, "width": side},
        "resample": 3,  # bicubic
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "mask": {"mean": MASK_MEAN, "std": MASK_STD, "resample": 2},  # 1 = the region, 0 = the rest and the padding
    }
