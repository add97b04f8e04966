"""A GLaMM and its longest micro-batch, to be looked at without weights: for the planner of memory.

Legend: B images, L tokens, R boxes, M masks of an image, K points of a box, V words, C channels, H W pixels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from orchestrator.training.task import Losses
from stages.glamm.batches import IGNORED, GlammBatch, WordsBatch
from stages.glamm.config import Blueprint
from stages.glamm.foresight import BatchShape
from stages.glamm.model import Glamm
from stages.glamm.task import Weights, glamm_loss
from stages.glamm.words import POINTS, words_loss

PARTS = (
    "language_model.model", "language_model.lm_head", "vision_tower", "projector", "region_encoder",
    "prompt_projection", "sam.vision_encoder", "sam.prompt_encoder", "sam.mask_decoder",
)  # fmt: skip


def open_sitting(plain: Mapping[str, Any]) -> "GlammSitting":
    """Opens what `foresight.sketch_of` has written."""
    shape = BatchShape(**{**plain["batch"], "image_px": tuple(plain["batch"]["image_px"])})
    return GlammSitting(Blueprint.from_plain(plain["model"]), shape, words=plain["words"])


class GlammSitting:
    """The model of a blueprint, with micro-batches of one shape."""

    parts = PARTS

    def __init__(self, blueprint: Blueprint, shape: BatchShape, *, words: bool) -> None:
        """Takes what the stage foresees; `words`: of the stage that reads words off image tokens."""
        self._blueprint, self._shape, self._words = blueprint, shape, words

    def build_model(self) -> nn.Module:
        """Builds the model as training does."""
        return Glamm(self._blueprint)

    def batch(self, samples: int) -> GlammBatch | WordsBatch:
        """Makes a micro-batch on the CPU in which every sample has the most that it may have."""
        return self._words_batch(samples) if self._words else self._glamm_batch(samples)

    def loss(self, model: nn.Module, batch: GlammBatch | WordsBatch) -> Losses:
        """Computes what the stage's task computes."""
        if isinstance(batch, WordsBatch):
            return words_loss(model, batch)
        canvas, vocabulary = self._blueprint.canvas_px, self._blueprint.vocabulary_size
        return glamm_loss(model, batch, Weights(), canvas=canvas, vocabulary=vocabulary)

    def _glamm_batch(self, samples: int) -> GlammBatch:
        shape, images = self._shape, self._blueprint.num_image_tokens
        width, height = shape.image_px
        labels_BL = torch.full((samples, shape.tokens), IGNORED)
        labels_BL[:, shape.tokens - shape.predicted :] = 0
        attention_BL = torch.ones(samples, shape.tokens, dtype=torch.bool)
        attention_BL[0, -1] = samples == 1  # samples of one length would need no mask of attention
        places_L = torch.arange(shape.tokens)
        masks = max(1, shape.masks)  # a batch without any carries the place of one
        scale = self._blueprint.canvas_px / max(shape.image_px)
        return GlammBatch(
            clip_pixels_BCHW=self._clip_pixels(samples),
            sam_pixels_BCHW=torch.zeros(samples, 3, self._blueprint.canvas_px, self._blueprint.canvas_px),
            sam_sizes_B2=torch.tensor([[max(1, round(height * scale)), max(1, round(width * scale))]] * samples),
            ids_BL=torch.zeros(samples, shape.tokens, dtype=torch.long),
            labels_BL=labels_BL,
            attention_BL=attention_BL,
            is_image_BL=((places_L >= 1) & (places_L <= images)).expand(samples, -1).clone(),
            is_box_BL=((places_L > images) & (places_L <= images + shape.boxes)).expand(samples, -1).clone(),
            boxes_R4=torch.zeros(samples * shape.boxes, 4),
            box_image_R=torch.arange(samples).repeat_interleave(shape.boxes),
            seg_place_BM=torch.zeros(samples, masks, dtype=torch.long),
            has_mask_BM=torch.full((samples, masks), shape.masks > 0),
            masks=[torch.zeros(shape.masks, height, width, dtype=torch.bool) for _ in range(samples)],
        )

    def _words_batch(self, samples: int) -> WordsBatch:
        regions = samples * self._shape.boxes
        return WordsBatch(
            clip_pixels_BCHW=self._clip_pixels(samples),
            boxes_R4=torch.zeros(regions, 4),
            points_RK2=torch.zeros(regions, POINTS, 2),
            box_image_R=torch.arange(samples).repeat_interleave(self._shape.boxes),
            words_RV=torch.zeros(regions, self._blueprint.vocabulary_size),
        )

    def _clip_pixels(self, samples: int) -> torch.Tensor:
        side: int = self._blueprint.vision["image_size"]
        return torch.zeros(samples, 3, side, side)
