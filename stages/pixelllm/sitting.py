"""A PixelLLM and its largest micro-batch, to be looked at without weights: for the planner of memory.

Legend: as in `batches.py`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from orchestrator.training.task import Losses
from stages.pixelllm.batches import IGNORED, PixelBatch
from stages.pixelllm.config import Blueprint
from stages.pixelllm.foresight import BatchShape
from stages.pixelllm.model import PixelLLM
from stages.pixelllm.task import Weights, pixelllm_loss


def open_sitting(plain: Mapping[str, Any]) -> "PixelLLMSitting":
    """Opens what `PixelLLMStage.sketch` has written."""
    return PixelLLMSitting(Blueprint.from_plain(plain["model"]), BatchShape(**plain["batch"]))


class PixelLLMSitting:
    """The model of a blueprint, with micro-batches of one shape."""

    parts = (
        "semantic", "localization", "prompts", "extractor", "projection", "language", "location", "detector", "masks",
    )  # fmt: skip

    def __init__(self, blueprint: Blueprint, shape: BatchShape) -> None:
        """Takes what the stage foresees."""
        self._blueprint, self._shape = blueprint, shape

    def build_model(self) -> nn.Module:
        """Builds the model as training does."""
        return PixelLLM(self._blueprint)

    def batch(self, samples: int) -> PixelBatch:
        """Makes a micro-batch on the CPU in which every sample has the most that it may have."""
        shape, canvas = self._shape, self._blueprint.canvas_px
        rows, length = samples * shape.rows, shape.text + 1  # of a text, the start token first
        drawn = samples * shape.masks
        return PixelBatch(
            semantic_pixels_BCHW=torch.zeros(samples, 3, canvas, canvas),
            localization_pixels_BCHW=torch.zeros(samples, 3, canvas, canvas),
            inside_B2=torch.full((samples, 2), float(canvas)),
            image_N=torch.arange(samples).repeat_interleave(shape.rows),
            prompts_N4=torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(rows, 1),
            context_NM=torch.zeros(rows, shape.context, dtype=torch.long),
            is_context_NM=torch.ones(rows, shape.context, dtype=torch.bool),
            ids_NL=torch.zeros(rows, length, dtype=torch.long),
            targets_NL=torch.full((rows, length), 0 if shape.speaks else IGNORED),
            corners_NL22=torch.zeros(rows, length, 2, 2),
            is_located_NL=torch.ones(rows, length, dtype=torch.bool),
            last_N=torch.full((rows,), shape.text),
            drawn_S=torch.arange(drawn),
            masks_SHW=torch.zeros(drawn, canvas, canvas, dtype=torch.bool),
            boxes_G4=torch.tensor([0.0, 0.0, canvas, canvas]).repeat(samples * shape.boxes, 1),
            box_image_G=torch.arange(samples).repeat_interleave(shape.boxes),
            proposes=shape.boxes > 0,
            idle=frozenset(shape.idle),
        )

    def loss(self, model: nn.Module, batch: PixelBatch) -> Losses:
        """Computes what the stage's task computes."""
        return pixelllm_loss(model, batch, Weights())
