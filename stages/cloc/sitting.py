"""A CLOC and a micro-batch of it, to be looked at without weights: for the planner of memory."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from orchestrator.training.task import Losses
from stages.cloc.batches import ClocBatch, Texts
from stages.cloc.config import Blueprint
from stages.cloc.model import Cloc
from stages.cloc.task import Weights, cloc_loss


def open_sitting(plain: Mapping[str, Any]) -> "ClocSitting":
    """Opens what `ClocContrastive.sketch` has written."""
    return ClocSitting(Blueprint.from_plain(plain["model"]), plain["regions"])


class ClocSitting:
    """The model of a blueprint, with micro-batches of texts that are as long as they may be."""

    parts = ("vision_model", "text_model", "prompter")

    def __init__(self, blueprint: Blueprint, regions: int) -> None:
        """Takes what the stage foresees."""
        self._blueprint, self._regions = blueprint, regions

    def build_model(self) -> nn.Module:
        """Builds the model as training does."""
        return Cloc(self._blueprint)

    def batch(self, samples: int) -> ClocBatch:
        """Makes a micro-batch on the CPU in which every image has all the regions that it may have."""
        side, regions = self._blueprint.image_size, self._regions
        return ClocBatch(
            pixels_BCHW=torch.zeros(samples, 3, side, side),
            captions=self._texts(samples),
            captioned_B=torch.ones(samples, dtype=torch.bool),
            boxes_BM4=torch.zeros(samples, regions, 4),
            phrases=self._texts(samples, regions),
            real_BM=torch.ones(samples, regions, dtype=torch.bool),
        )

    def loss(self, model: nn.Module, batch: ClocBatch) -> Losses:
        """Computes what the stage's task computes; what other ranks add to its tables is left out."""
        return cloc_loss(model, batch, Weights(), chunk=None)

    def _texts(self, *shape: int) -> Texts:
        length = self._blueprint.max_tokens
        return Texts(torch.zeros(*shape, length, dtype=torch.long), torch.full(shape, length - 1))
