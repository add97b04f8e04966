"""Tiny GLaMMs with a real checkpoint each, for the tests of answering and export; fresh weights that speak in tags."""

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image

from orchestrator.artifacts import Checkpoint
from orchestrator.training import elastic
from orchestrator.training.elastic import WEIGHTS
from orchestrator.training.holdings import saved_buffers
from orchestrator.world import World
from stages.glamm.config import (
    Blueprint,
    GlammConfig,
    GroundingConfig,
    LanguageConfig,
    LoraConfig,
    RegionConfig,
    VisionConfig,
    draw_blueprint,
)
from stages.glamm.initial import draw_weights
from stages.glamm.model import Glamm
from stages.glamm.prompts import GCG_QUESTIONS, REGION_QUESTIONS, make_prompt
from stages.glamm.task import FAMILY
from stages.glamm.tokenizer import Vocabulary, train_vocabulary

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
    """Draws weights, and makes the tags as likely as all words together, so that tags are written, in any order."""
    draw_weights(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # adapters that change nothing would prove nothing
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        head = model.language_model.lm_head.weight
        head[[words.seg_id, words.phrase_start_id, words.phrase_end_id]] *= 12
        head[: words.seg_id] *= 4
    return model


def write_checkpoint(directory: Path, model: Glamm, words: Vocabulary, *, step: int = 5) -> Checkpoint:
    """Writes what a training stage leaves behind."""
    pieces = [elastic.whole(name, p) for name, p in (*model.named_parameters(), *saved_buffers(model))]
    elastic.write(directory / WEIGHTS, pieces, World.alone())
    (directory / "tokenizer").mkdir()
    for name, content in words.files().items():
        (directory / "tokenizer" / name).write_bytes(content)
    checkpoint = Checkpoint(directory)
    tensors = elastic.tensors(directory / WEIGHTS)
    facts = {"family": FAMILY, "model": model.blueprint.to_plain(), "tensors": tensors, "step": step}
    checkpoint.commit("f" * 64, facts=facts)
    return checkpoint


def tiny_blueprint(words: Vocabulary, *, lora: bool = False) -> Blueprint:
    """Draws the smallest model, with adapters if asked."""
    import dataclasses

    config = dataclasses.replace(TINY, lora=LoraConfig(rank=2, alpha=4) if lora else None)
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


def same_parameters(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Tells whether both hold the same numbers under the same names."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
