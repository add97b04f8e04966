"""A Pix2Cap and a micro-batch of it, to be looked at without weights: for the planner of memory.

Legend: as in `batches.py`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.models.mask2former import modeling_mask2former as mask2former

from orchestrator.training.task import Losses
from stages.pix2cap.batches import Pix2CapBatch
from stages.pix2cap.config import Blueprint, LossConfig
from stages.pix2cap.losses import SegmentLoss
from stages.pix2cap.model import Pix2Cap
from stages.pix2cap.task import pix2cap_loss


def open_sitting(plain: Mapping[str, Any]) -> "Pix2CapSitting":
    """Opens what `Pix2CapTraining.sketch` has written."""
    return Pix2CapSitting(Blueprint.from_plain(plain["model"]), LossConfig(**plain["losses"]), plain["segments"])


class Pix2CapSitting:
    """The model of a blueprint, with micro-batches of which every picture has many segments, described at length."""

    parts = (
        "segmenter.pixel_level_module.encoder", "segmenter.pixel_level_module.decoder", "segmenter.transformer_module",
        "class_predictor", "captioner",
    )  # fmt: skip

    def __init__(self, blueprint: Blueprint, losses: LossConfig, segments: int) -> None:
        """Takes what the stage foresees; `segments` are those of a picture."""
        self._blueprint, self._losses, self._segments = blueprint, losses, segments

    def build_model(self) -> nn.Module:
        """Builds the model as training does."""
        model = Pix2Cap(self._blueprint, caption_predictions=self._losses.caption_predictions)
        return model.to("meta")  # transformers makes its marks of levels on the CPU, whatever the default device is

    def batch(self, samples: int) -> Pix2CapBatch:
        """Makes a micro-batch on the CPU."""
        side, segments, length = self._blueprint.image_px, self._segments, self._blueprint.max_tokens
        wanted_SL = torch.ones(samples * segments, length, dtype=torch.bool)
        wanted_SL[:, 0] = False
        return Pix2CapBatch(
            pixels_BCHW=torch.zeros(samples, 3, side, side),
            # no shape follows from what these say, and on the CPU they would be large
            masks=[torch.zeros(segments, side, side, dtype=torch.bool, device="meta") for _ in range(samples)],
            classes=[torch.zeros(segments, dtype=torch.long) for _ in range(samples)],
            ids_SL=torch.zeros(samples * segments, length, dtype=torch.long),
            wanted_SL=wanted_SL,
            image_S=torch.arange(samples).repeat_interleave(segments),
            mask_S=torch.arange(segments).repeat(samples),
        )

    def loss(self, model: nn.Module, batch: Pix2CapBatch) -> Losses:
        """Computes what the stage's task computes, but for what follows from values: who is matched with whom."""
        criterion = SegmentLoss(self._losses, len(self._blueprint.categories))
        with without_values():
            return pix2cap_loss(model, batch, self._losses, criterion)


@contextmanager
def without_values() -> Iterator[None]:
    """Answers what transformers asks about values: queries and segments match in their order, all numbers are finite.

    Its functions themselves are exchanged, as in `orchestrator.training.memory.tape.fused_attention`.
    """
    exchanged = [(vars(mask2former), "linear_sum_assignment", _in_order), (vars(torch), "isfinite", _yes)]
    originals = [names[name] for names, name, _ in exchanged]
    for names, name, instead in exchanged:
        names[name] = instead
    try:
        yield
    finally:
        for (names, name, _), original in zip(exchanged, originals, strict=True):
            names[name] = original


def _in_order(cost_QM: torch.Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    order = np.arange(min(cost_QM.shape))
    return order, order


def _yes(_: torch.Tensor) -> torch.Tensor:
    return torch.ones((), dtype=torch.bool)
