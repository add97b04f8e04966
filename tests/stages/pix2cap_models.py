"""Tiny Pix2Caps, their samples and a real checkpoint each, for the tests of the family."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from orchestrator.artifacts import Checkpoint
from stages.pix2cap.batches import Pix2CapBatch
from stages.pix2cap.collate import Collator
from stages.pix2cap.config import (
    FAMILY,
    AugmentConfig,
    BackboneConfig,
    Blueprint,
    CaptionerConfig,
    Category,
    LossConfig,
    Pix2CapConfig,
    SegmenterConfig,
    draw_blueprint,
)
from stages.pix2cap.initial import draw_weights
from stages.pix2cap.model import Pix2Cap
from stages.pix2cap.task import Pix2CapTask, Start
from stages.samples import Region, Sample
from stages.vision import rle_from_mask
from stages.wordpieces import WordPieces, learn_pieces
from tests.stages.trained_models import write_model

TEXTS = ("A red bar on the left.", "A blue bar on the right.", "A grey ground behind two bars.")
CATEGORIES = (
    Category(id=1, name="bar", thing=True),
    Category(id=7, name="post", thing=True),
    Category(id=9, name="ground", thing=False),
)
TINY = Pix2CapConfig(
    segmenter=SegmenterConfig(
        backbone=BackboneConfig(embed_size=8, depths=(1, 1, 1, 1), focal_levels=1, drop_path=0.0),
        width=32, encoder_layers=1, encoder_mlp_size=32, predictions=3, heads=2, decoder_mlp_size=32, queries=5,
    ),
    captioner=CaptionerConfig(
        hidden_size=32, layers=1, heads=2, mlp_size=32, dropout=0.0, object_size=16, max_tokens=16
    ),
    image_px=64, least_score=0.3, least_overlap=0.3,
)  # fmt: skip
LOSSES = LossConfig(captions=1.0, caption_predictions=2, points=64)
STILL = AugmentConfig(scale=(1.0, 1.0), flip=0.0)


def vocabulary() -> WordPieces:
    """Learns a small one."""
    return learn_pieces(TEXTS * 20, 300)


def tiny_blueprint(words: WordPieces) -> Blueprint:
    """Draws the smallest model."""
    return draw_blueprint(TINY, words.size, CATEGORIES)


def tiny_task(words: WordPieces, *, start: Start | None = None) -> Pix2CapTask:
    """Makes its task, from nothing."""
    return Pix2CapTask(tiny_blueprint(words), words, start=start or Start(), losses=LOSSES, augment=STILL)


def tiny_model(words: WordPieces, *, seed: int = 1) -> Pix2Cap:
    """Builds one with fresh weights."""
    model = Pix2Cap(tiny_blueprint(words), caption_predictions=LOSSES.caption_predictions)
    draw_weights(model, seed)
    return model


def sample(number: int = 0, *, size: tuple[int, int] = (40, 32)) -> Sample:
    """Draws a red bar at the left, a blue post at the right, and the ground around them; each is described."""
    width, height = size
    pixels_HWC = np.full((height, width, 3), 120 + number % 9, dtype=np.uint8)
    masks = {name: np.zeros((height, width), dtype=np.bool_) for name in ("bar", "post")}
    masks["bar"][4:-4, 4 : width // 2 - 4] = True
    masks["post"][4:-4, width // 2 + 4 : -4] = True
    masks["ground"] = ~(masks["bar"] | masks["post"])
    pixels_HWC[masks["bar"]], pixels_HWC[masks["post"]] = (220, 30, 30), (30, 40, 220)
    regions = tuple(
        Region(box_xyxy_px=(0, 0, width, height), mask=rle_from_mask(mask_HW), phrase=name, caption=text)
        for (name, mask_HW), text in zip(masks.items(), TEXTS, strict=True)
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, format="PNG")
    return Sample(key=f"bars{number:04d}", image=buffer.getvalue(), width_px=width, height_px=height, regions=regions)


def bare(of: Sample) -> Sample:
    """Takes the segments away."""
    return replace(of, regions=())


def batch_of(words: WordPieces, samples: Sequence[Sample]) -> Pix2CapBatch:
    """Collates samples as they are."""
    collator = Collator(tiny_blueprint(words), words)
    examples = [collator.example(one) for one in samples]
    return collator.batch(examples, [collator.whole(example.image) for example in examples])


def taught(words: WordPieces, samples: Sequence[Sample], *, steps: int) -> Pix2Cap:
    """Trains a tiny model on these samples alone."""
    torch.manual_seed(0)
    task, model = tiny_task(words), tiny_model(words)
    batch = batch_of(words, samples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model, batch).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def write_checkpoint(directory: Path, model: Pix2Cap, words: WordPieces) -> Checkpoint:
    """Writes what a training stage leaves behind."""
    return write_model(directory, FAMILY, model, words.files())
