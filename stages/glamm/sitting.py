"""A GLaMM and its longest micro-batch, to be looked at without weights: for the planner of memory.

Legend: as in `batches.py`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import SamConfig

from orchestrator.training.task import Losses
from stages.glamm.batches import IGNORED, GlammBatch, Seen, WordsBatch
from stages.glamm.collate import fit_inside
from stages.glamm.config import Blueprint
from stages.glamm.foresight import BatchShape
from stages.glamm.model import Glamm
from stages.glamm.task import Weights, glamm_loss
from stages.glamm.words import POINTS, words_loss
from stages.point_rule import PointRule

PARTS = (
    "language_model.model", "language_model.lm_head", "vision_tower", "projector", "region_encoder",
    "prompt_projection", "sam.vision_encoder", "sam.prompt_encoder", "sam.mask_decoder",
)  # fmt: skip


def open_sitting(plain: Mapping[str, Any]) -> "GlammSitting":
    """Opens what `foresight.sketch_of` has written."""
    points = plain["batch"]["mask_points"]
    rule = None if points is None else PointRule(**points)
    shape = BatchShape(**{**plain["batch"], "image_px": tuple(plain["batch"]["image_px"]), "mask_points": rule})
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
        weights = Weights(mask_side_px=self._shape.mask_side_px, mask_points=self._shape.mask_points)
        return glamm_loss(model, batch, weights, canvas=canvas, vocabulary=vocabulary)

    def _glamm_batch(self, samples: int) -> GlammBatch:
        shape, tokens = self._shape, self._blueprint.num_image_tokens
        width, height = shape.image_px
        canvas = self._blueprint.canvas_px
        images, each = samples * shape.images, shape.tokens // shape.images  # images of the batch, tokens of one
        predicted_BL = torch.zeros(samples, shape.tokens, dtype=torch.bool)
        predicted_BL[:, shape.tokens - shape.predicted :] = True
        places_L = torch.arange(shape.tokens)
        own_L = torch.where(places_L < each * shape.images, places_L % each, 0)  # within a conversation; 0: of none
        sequence_N = torch.arange(images).repeat_interleave(shape.masks)
        pointed = images if shape.masks else 1
        empty = torch.empty(images, 3, 0, 0)
        return GlammBatch(
            clip_pixels_BCHW=empty if shape.features else self._clip_pixels(images),
            sam_pixels_PCHW=empty[:pointed] if shape.features else torch.zeros(pointed, 3, canvas, canvas),
            seen=self._seen(images, pointed) if shape.features else None,
            sam_sizes_B2=torch.tensor([fit_inside(shape.image_px, canvas)] * images),
            ids_BL=torch.zeros(samples, shape.tokens, dtype=torch.long),
            labels_BL=torch.where(predicted_BL, 0, IGNORED),
            attention_BL=torch.ones(samples, shape.tokens, dtype=torch.bool),
            predicting_T=predicted_BL.flatten().nonzero()[:, 0] - 1,
            position_BL=(places_L % each).expand(samples, -1).clone() if shape.images > 1 else None,
            is_image_BL=((own_L >= 1) & (own_L <= tokens)).expand(samples, -1).clone(),
            is_box_BL=((own_L > tokens) & (own_L <= tokens + shape.boxes)).expand(samples, -1).clone(),
            boxes_R4=torch.zeros(images * shape.boxes, 4),
            box_image_R=torch.arange(images).repeat_interleave(shape.boxes),
            seg_sequence_N=sequence_N // shape.images,
            seg_place_N=torch.zeros_like(sequence_N),
            seg_image_N=sequence_N,
            seg_seed_N=torch.zeros_like(sequence_N),
            masks=[self._masks(height, width) for _ in range(images)],
        )

    def _seen(self, images: int, pointed: int) -> Seen:
        blueprint, sam = self._blueprint, SamConfig(**self._blueprint.grounding).to_dict()["vision_config"]
        states, cells = len(blueprint.read_states), blueprint.canvas_px // sam["patch_size"]
        return Seen(
            patches_KBNC=torch.zeros(states, images, blueprint.num_image_tokens, blueprint.vision["hidden_size"]),
            images_PCHW=torch.zeros(pointed, sam["output_channels"], cells, cells),
        )

    def _masks(self, height: int, width: int) -> torch.Tensor:
        side = self._shape.mask_side_px
        if side is None:
            return torch.zeros(self._shape.masks, height, width, dtype=torch.bool)
        return torch.zeros(self._shape.masks, *fit_inside((width, height), side))

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
