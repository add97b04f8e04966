"""Tiny PixCLIPs, batches and a tiny folder of a language model, for the tests of PixCLIP."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel

from orchestrator.artifacts import Checkpoint
from orchestrator.data.stream import Drawn
from stages.pixclip.config import (
    FAMILY,
    Blueprint,
    PixClipConfig,
    TextModelConfig,
    VisionConfig,
    draw_blueprint,
)
from stages.pixclip.initial import draw_weights
from stages.pixclip.model import PixClip
from stages.pixclip.task import Branches, PixClipTask, Start
from stages.samples import Sample
from stages.wordpieces import WordPieces, learn_pieces
from tests.stages.scenes import COLOURS
from tests.stages.trained_models import write_model

TINY = PixClipConfig(
    vision=VisionConfig(image_size=16, patch_size=4, hidden_size=16, layers=2, heads=2, mlp_size=24),
    text=TextModelConfig(hidden_size=16, layers=1, heads=2, mlp_size=24, max_tokens=24),
    embedding_size=12,
    adapter_blocks=2,
    roi_sampling=4,
)
BRANCHES = Branches(masked=1.0, crop=0.5, roi=0.25, roi_against="crop", conflict=None)
TEXTS = tuple(f"the {colour} bar on the left of another one" for colour in COLOURS)
PIECES = learn_pieces(TEXTS * 20, 300)


def blueprint_of(config: PixClipConfig = TINY) -> Blueprint:
    """Draws the smallest model, with a text model of its own."""
    return draw_blueprint(config, vocabulary_size=PIECES.size)


def tiny_model(seed: int = 1, *, sees_masks: bool = True, config: PixClipConfig = TINY) -> PixClip:
    """Builds a model with fresh weights; one that sees masks has learnt something about them."""
    model = PixClip(blueprint_of(config))
    draw_weights(model, seed)
    if sees_masks:
        alpha = model.vision_model.embeddings.patch_embedding.alpha.weight
        torch.nn.init.normal_(alpha, std=0.5, generator=torch.Generator().manual_seed(seed))
    return model.eval()


def tiny_task(pieces: WordPieces | None = PIECES, blueprint: Blueprint | None = None, **more: object) -> PixClipTask:
    """Makes a task that begins from chance."""
    settings: dict[str, object] = {"start": Start(), "branches": BRANCHES, "crop_scale": 1.5, "whole_share": 0.0}
    return PixClipTask(blueprint or blueprint_of(), pieces, **{**settings, **more})  # type: ignore[arg-type]


def drawn_of(samples: Sequence[Sample], source: str = "regions") -> list[Drawn]:
    """Draws each sample once."""
    return [
        Drawn(source=source, key=sample.key, members=sample.to_members(), seed=place, place=place)
        for place, sample in enumerate(samples)
    ]


def write_checkpoint(directory: Path, model: PixClip, *, step: int = 5) -> Checkpoint:
    """Writes what a training stage leaves behind."""
    return write_model(directory, FAMILY, model, PIECES.files(), step=step)


def write_language_model(directory: Path, *, seed: int = 0) -> Path:
    """Writes a folder with a tiny LLaMA and a tokenizer of whole words, as Hugging Face's transformers save them."""
    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["<unk>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 - a word, no secret
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(seed)
    settings = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=20, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=24, max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    LlamaModel(settings).save_pretrained(directory)
    inner.save(str(directory / "tokenizer.json"))
    return directory
