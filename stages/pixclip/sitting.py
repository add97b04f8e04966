"""A PixCLIP and its micro-batch, to be looked at without weights: for the planner of memory.

Legend: as in `batches.py`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from orchestrator.training.task import Losses
from stages.pixclip.batches import PixClipBatch, Texts
from stages.pixclip.config import Blueprint
from stages.pixclip.model import PixClip
from stages.pixclip.task import Branches, branch_losses


def open_sitting(plain: Mapping[str, Any]) -> "PixClipSitting":
    """Opens what `PixClipContrastive.sketch` has written."""
    blueprint = Blueprint.from_plain(plain["model"])
    return PixClipSitting(blueprint, crops=plain["crops"], images_at_once=plain["images_at_once"])


class PixClipSitting:
    """The model of a blueprint, with micro-batches of the longest texts."""

    def __init__(self, blueprint: Blueprint, *, crops: bool, images_at_once: int | None) -> None:
        """Takes what the stage foresees."""
        self._blueprint, self._crops, self._images_at_once = blueprint, crops, images_at_once
        text = () if blueprint.text is None else ("text_model",)
        self.parts = ("vision_model", "visual_projection", *text, "text_adapter")

    def build_model(self) -> nn.Module:
        """Builds the model as training does."""
        return PixClip(self._blueprint)

    def batch(self, samples: int) -> PixClipBatch:
        """Makes a micro-batch on the CPU."""
        blueprint = self._blueprint
        squares_B4SS = torch.zeros(samples, 4, blueprint.side_px, blueprint.side_px)
        ids_BL = torch.zeros(samples, blueprint.max_tokens, dtype=torch.long)
        tokens = Texts(ids_BL=ids_BL, attention_BL=ids_BL == 0)
        embedded = Texts(embeddings_BE=torch.zeros(samples, blueprint.text_size))
        return PixClipBatch(
            whole_B4SS=squares_B4SS,
            crops_B4SS=squares_B4SS.clone() if self._crops else None,
            boxes_B4=torch.zeros(samples, 4),
            texts=embedded if blueprint.text is None else tokens,
        )

    def loss(self, model: nn.Module, batch: PixClipBatch) -> Losses:
        """Computes what the stage's task computes, less what other ranks bring."""
        against: Any = "crop" if self._crops else "text"
        branches = Branches(masked=1.0, crop=float(self._crops), roi=1.0, roi_against=against, conflict=None)
        return branch_losses(model(batch, images_at_once=self._images_at_once), branches)
