"""Scenes of shapes as shards, and GLaMMs of three sizes, for `benchmarks.glamm_step`."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from orchestrator.artifacts import Shards
from orchestrator.data.writer import ShardWriter
from orchestrator.records import record
from stages.adapters import LoraConfig
from stages.glamm.config import (
    Blueprint,
    GlammConfig,
    GroundingConfig,
    LanguageConfig,
    RegionConfig,
    VisionConfig,
    draw_blueprint,
)
from stages.glamm.corpus import QUESTIONS
from stages.glamm.prompts import make_prompt
from stages.glamm.tokenizer import Vocabulary, train_vocabulary
from stages.samples import Region, Sample
from stages.shapes.scenes import draw_scene
from stages.shapes.words import grounded_caption, segment_description
from stages.vision import box_of_mask, rle_from_mask
from tests.published_sizes import FULL

KINDS = {"captions": "caption", "grounded": "gcg", "segments": "region_mask"}
WORDS = 1000
_PROMPT_REPEATS = 5
_OBJECTS = 4  # of a scene, at most; the ground counts as one more region


@record
class Size:
    """A model and the pictures it learns from."""

    model: GlammConfig
    image_px: int
    budget: int  # tokens of a pack
    micro_batch: int  # samples, as the original has them; of ours, packs
    step: int  # samples of a step, about


SIZES = {
    "tiny": Size(
        model=GlammConfig(
            language=LanguageConfig(), vision=VisionConfig(), grounding=GroundingConfig(),
            region=RegionConfig(layers=(2, 3), upsample=(2, 1), channels=32, rounds=2, groups=8, roi_size=4),
            lora=LoraConfig(dropout=0.0), max_tokens=512,
        ),
        image_px=320, budget=512, micro_batch=2, step=6,
    ),
    "medium": Size(
        model=GlammConfig(
            language=LanguageConfig(hidden_size=384, layers=6, heads=6, mlp_size=1024, max_positions=1024),
            vision=VisionConfig(image_size=112, patch_size=14, hidden_size=256, layers=6, heads=4, mlp_size=1024),
            grounding=GroundingConfig(
                image_size=256, patch_size=16, hidden_size=256, layers=6, heads=4, mlp_size=1024, window_size=8,
                global_layers=(2, 5), channels=128, decoder_mlp_size=512, decoder_heads=4,
            ),
            region=RegionConfig(layers=(2, 3, 4, 5), upsample=(4, 2, 2, 1), channels=64, rounds=2, groups=8),
            lora=LoraConfig(dropout=0.0), max_tokens=768,
        ),
        image_px=480, budget=768, micro_batch=2, step=6,
    ),
    "full": Size(
        model=replace(FULL, lora=LoraConfig(dropout=0.0)),
        image_px=640, budget=2048, micro_batch=2, step=6,
    ),
}  # fmt: skip


def write_scenes(directory: Path, count: int, *, image_px: int) -> list[str]:
    """Writes scenes as shards; returns all that is said of them."""
    texts = []
    with ShardWriter(directory) as writer:
        for number in range(count):
            sample = _scene(number, image_px)
            texts += [sample.caption, *(region.caption for region in sample.regions)]
            writer.write(sample.key, sample.to_members())
        facts = writer.close()
    Shards(directory).commit("0" * 64, facts=facts, sha256=writer.sha256)
    return texts


def drawn_up(size: Size, texts: list[str]) -> tuple[Blueprint, Vocabulary]:
    """Learns a tokenizer from texts and prompts, and draws the model with it: a small vocabulary, at every size."""
    prompts = [make_prompt(question) for bank in QUESTIONS for question in bank]
    vocabulary = train_vocabulary([*texts, *prompts * _PROMPT_REPEATS], WORDS)
    return draw_blueprint(size.model, vocabulary.size), vocabulary


def _scene(number: int, image_px: int) -> Sample:
    scene = draw_scene(np.random.default_rng([7, number]), image_px=image_px, max_objects=_OBJECTS)
    said, regions = grounded_caption(scene), []
    for thing, span in zip([*range(len(scene.things)), -1], said.spans, strict=True):
        mask_HW = scene.mask(thing)
        box = box_of_mask(mask_HW)
        assert box is not None  # noqa: S101 - every thing shows most of itself
        regions.append(
            Region(
                box_xyxy_px=box, mask=rle_from_mask(mask_HW), phrase=said.text[slice(*span)],
                caption=segment_description(scene, thing), spans=(span,),
            )
        )  # fmt: skip
    picture = io.BytesIO()
    Image.fromarray(scene.pixels_HW3).save(picture, format="JPEG", quality=90)
    return Sample(
        key=f"scene{number:06d}", image=picture.getvalue(), width_px=image_px, height_px=image_px, caption=said.text,
        regions=tuple(regions),
    )  # fmt: skip
