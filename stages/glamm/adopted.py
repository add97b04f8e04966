"""Says what a GLaMM is made of that its authors published: sizes read off its files, quirks as it was trained with."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from orchestrator.errors import InputError
from orchestrator.records import record
from orchestrator.training.foreign.mapping import recognise
from orchestrator.training.foreign.opening import open_source
from stages.folders import read_settings
from stages.glamm.config import (
    Blueprint,
    GlammConfig,
    LanguageConfig,
    RegionConfig,
    VisionConfig,
    draw_blueprint,
)
from stages.glamm.published import GLAMM
from stages.glamm.sam_original import sam_settings
from stages.glamm.tokenizer import Vocabulary

ROI_SIDE_PX = 224  # published boxes are scaled to this, whatever the image encoder's size: facts of GPT4RoI
_SAM, _REGION = "model.grounding_encoder.", "model.region_encoder."


@record
class Adopted:
    """A published GLaMM, before any tensor of it is read."""

    config: GlammConfig
    blueprint: Blueprint
    vocabulary: Vocabulary


def read_adopted(folder: Path, vision: Path) -> Adopted:
    """Reads sizes and tokenizer of a published folder, and the sizes of the CLIP that belongs to it."""
    source = open_source(folder)
    recognise(source, (GLAMM,))
    shapes = {name.removeprefix("base_model.model."): entry.shape for name, entry in source.entries.items()}
    vocabulary = Vocabulary.read(folder)
    settings = read_settings(vision)
    layers: int = settings.get("vision_config", settings).get("num_hidden_layers", 0)
    config = GlammConfig(
        language=LanguageConfig(path=folder),
        vision=VisionConfig(path=vision),
        region=_region(_below(_REGION, shapes), layers, source.label),
        centre_crop=True,
        roi_side_px=ROI_SIDE_PX,
    )
    grounding = sam_settings(_below(_SAM, shapes), source.label)
    blueprint = replace(draw_blueprint(config, vocabulary.size), grounding=grounding)
    return Adopted(config=config, blueprint=blueprint, vocabulary=vocabulary)


def _region(shapes: Mapping[str, tuple[int, ...]], layers: int, label: str) -> RegionConfig:
    """Reads the region encoder's sizes; its levels are every third hidden state of CLIP, from the last but one down."""
    try:
        levels = sum(name.startswith("mlvl_fuse.input_conv.") and name.endswith("weight") for name in shapes)
        channels = shapes["mlvl_fuse.input_conv.0.weight"][0]
        rounds = sum(name.startswith("mlvl_fuse.fuse_convs.") and name.endswith("conv.weight") for name in shapes)
        cells = shapes["roi_align.flatten_linear.weight"][1] // channels
        position = shapes["roi_align.pos_embedd.0.weight"][0]
    except (KeyError, IndexError) as error:
        raise InputError(f"{label} has no whole region encoder: there is no {error}") from None
    deepest = layers - 1  # of layers + 1 hidden states
    if deepest - 3 * (levels - 1) < 0:
        raise InputError(f"{label} reads {levels} levels of its image encoder, for which {layers} layers are too few")
    return RegionConfig(
        layers=tuple(deepest - 3 * level for level in reversed(range(levels))),
        upsample=tuple(2**level for level in reversed(range(levels))),
        channels=channels,
        rounds=rounds,
        roi_size=math.isqrt(cells),
        position_size=position,
    )


def _below(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
