"""Tiny GLaMMs with a real checkpoint each, for the tests of answering and export; fresh weights that speak in tags."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from orchestrator.artifacts import Checkpoint
from stages.adapters import LoraConfig
from stages.glamm.collate import Collator, Example
from stages.glamm.config import (
    FAMILY,
    Blueprint,
    GlammConfig,
    GroundingConfig,
    LanguageConfig,
    RegionConfig,
    VisionConfig,
    draw_blueprint,
)
from stages.glamm.initial import draw_weights
from stages.glamm.model import Glamm
from stages.glamm.prompts import GCG_QUESTIONS, REGION_QUESTIONS, make_prompt
from stages.glamm.task import GlammTask, Start, Weights
from stages.glamm.tokenizer import Vocabulary, train_vocabulary
from tests.stages.trained_models import write_model

WORDS = ("A red bar stands left of a blue bar.", "The green disc is above a grey bar, near the é.")
TINY = GlammConfig(
    language=LanguageConfig(hidden_size=32, layers=2, heads=2, mlp_size=48, max_positions=256),
    vision=VisionConfig(image_size=16, patch_size=4, hidden_size=16, layers=2, heads=2, mlp_size=24),
    grounding=GroundingConfig(
        image_size=32, patch_size=4, hidden_size=16, layers=2, heads=2, mlp_size=24, window_size=4, global_layers=(1,),
        channels=16, decoder_mlp_size=24, decoder_heads=2,
    ),
    region=RegionConfig(
        layers=(1, 2), upsample=(2, 1), channels=8, rounds=1, groups=2, roi_size=2, sampling=2, position_size=8
    ),
    max_tokens=200,
)  # fmt: skip


def vocabulary() -> Vocabulary:
    """Learns a small one."""
    prompts = [make_prompt(question) for question in (*GCG_QUESTIONS, *REGION_QUESTIONS)]
    return train_vocabulary([*(f" {text}" for text in WORDS), *prompts] * 20, 400)


def talkative(model: Glamm, words: Vocabulary, seed: int) -> Glamm:
    """Draws weights with which text depends on all there is to see, and tags are written in any order."""
    draw_weights(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # adapters that change nothing would prove nothing
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        model.language_model.lm_head.weight[[words.seg_id, words.phrase_start_id, words.phrase_end_id]] *= (
            2.5  # so that tags are written
        )
        words_VD = model.language_model.model.embed_tokens.weight
        words_VD -= words_VD.mean(0)  # what all words share would make them follow each other in circles
        words_VD *= 12  # so that each word depends on the one before,
        model.projector[2].weight *= 4  # on the image,
        model.region_encoder.project.weight *= 4  # and on the boxes
    return model


def write_checkpoint(directory: Path, model: Glamm, words: Vocabulary, *, step: int = 5) -> Checkpoint:
    """Writes what a training stage leaves behind."""
    return write_model(directory, FAMILY, model, words.files(), step=step)


def tiny_blueprint(words: Vocabulary, *, lora: bool = False) -> Blueprint:
    """Draws the smallest model, with adapters if asked."""
    config = replace(TINY, lora=LoraConfig(rank=2, alpha=4) if lora else None)
    return draw_blueprint(config, words.size)


def tiny_checkpoint(directory: Path, *, lora: bool = False, seed: int = 1) -> Checkpoint:
    """Writes the checkpoint of a tiny model."""
    words = vocabulary()
    return write_checkpoint(directory, talkative(Glamm(tiny_blueprint(words, lora=lora)), words, seed), words)


def picture(number: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Draws noise: no two numbers look alike."""
    generator = torch.Generator().manual_seed(number)
    pixels_HWC = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels_HWC.numpy())


def half(image: Image.Image, *, left: bool) -> np.ndarray:
    """Masks the left or the right half of a picture."""
    mask_HW = np.zeros((image.height, image.width), dtype=np.bool_)
    columns = slice(0, image.width // 2) if left else slice(image.width // 2, None)
    mask_HW[:, columns] = True
    return mask_HW


def taught(words: Vocabulary, examples: Sequence[Example], *, steps: int) -> Glamm:
    """Trains a tiny model until it knows these examples by heart."""
    blueprint = tiny_blueprint(words)
    task = GlammTask(blueprint, words, {}, start=Start(), weights=Weights(), max_regions=4)
    model = task.build_model()
    assert isinstance(model, Glamm)
    draw_weights(model, seed=1)
    batch = Collator(blueprint, words).batch(examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    for _ in range(steps):
        loss = task.loss(model, batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model
