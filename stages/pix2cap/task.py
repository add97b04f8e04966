"""Pix2CapTask: samples to batches, batches to loss."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator.data.stream import Drawn
from orchestrator.records import record
from orchestrator.training.task import Losses, TrainTask
from stages.blueprints import fill_from_checkpoint, tokenizer_files
from stages.pix2cap.batches import Pix2CapBatch
from stages.pix2cap.collate import Collator
from stages.pix2cap.config import FAMILY, AugmentConfig, Blueprint, LossConfig, Pix2CapConfig
from stages.pix2cap.initial import draw_weights
from stages.pix2cap.losses import SegmentLoss, caption_loss
from stages.pix2cap.model import Pix2Cap, Seen
from stages.pix2cap.pretrained import fill_from_folders
from stages.samples import Sample
from stages.wordpieces import WordPieces


@record
class Start:
    """Where the weights come from: a checkpoint, else the folders that a config names, else chance."""

    checkpoint: Path | None = None
    folders: Pix2CapConfig | None = None


class Pix2CapTask(TrainTask[Pix2CapBatch]):
    """Trains segments, classes and captions together."""

    def __init__(
        self, blueprint: Blueprint, words: WordPieces, *, start: Start, losses: LossConfig, augment: AugmentConfig
    ) -> None:
        """Takes what the model is, how it begins, and how it learns."""
        self._blueprint, self._words, self._start = blueprint, words, start
        self._losses, self._augment = losses, augment
        self._segments = SegmentLoss(losses, len(blueprint.categories))
        self.collator = Collator(blueprint, words)

    def build_model(self) -> nn.Module:
        """Builds the model; its weights come later."""
        return Pix2Cap(self._blueprint, caption_predictions=self._losses.caption_predictions)

    def load_weights(self, model: nn.Module) -> None:
        """Fills the model; what the start does not have is drawn from the seed. Collective: every rank must call."""
        loaded: frozenset[str] = frozenset()
        if self._start.checkpoint is not None:
            loaded = fill_from_checkpoint(model, self._start.checkpoint)
        elif self._start.folders is not None:
            loaded = fill_from_folders(model, self._start.folders, self._blueprint.categories)
        draw_weights(model, torch.initial_seed(), keep=loaded)  # the engine has seeded torch with the stage's seed

    def collate(self, drawn: Sequence[Drawn]) -> Pix2CapBatch:
        """Makes a batch; how a picture is scaled, cut and mirrored is a function of its sample's own seed."""
        examples = [self.collator.example(Sample.from_members(one.key, one.members)) for one in drawn]
        placements = [
            self.collator.drawn(example.image, self._augment, one.seed)
            for example, one in zip(examples, drawn, strict=True)
        ]
        return self.collator.batch(examples, placements)

    def tokens_of(self, batch: Pix2CapBatch) -> int:
        """Counts the tokens of captions."""
        return int(batch.wanted_SL.sum())

    def loss(self, model: nn.Module, batch: Pix2CapBatch) -> Losses:
        """Adds up segments and captions; what a batch has none of weighs nothing."""
        return pix2cap_loss(model, batch, self._losses, self._segments)

    def describe(self) -> Mapping[str, Any]:
        """Returns the family and everything needed to rebuild the model."""
        return {"family": FAMILY, "model": self._blueprint.to_plain()}

    def extras(self) -> Mapping[str, bytes]:
        """Returns the tokenizer's files, which travel with the weights."""
        return tokenizer_files(self._words)


def pix2cap_loss(model: nn.Module, batch: Pix2CapBatch, weights: LossConfig, segments: SegmentLoss) -> Losses:
    """Computes the loss of a batch, moved to where the model is."""
    batch = batch.to(next(model.parameters()).device)
    out: tuple[Seen, torch.Tensor, torch.Tensor] = model(batch)
    seen, logits_TV, targets_T = out
    found, terms = segments(seen, batch)
    captions = caption_loss(logits_TV, targets_T, smoothing=weights.smoothing)
    # the release adds up the captions of all supervised predictions, each a mean over its words
    total = found + weights.captions * min(weights.caption_predictions, len(seen.mask_logits)) * captions
    return Losses(total=total, terms={**terms, "captions": captions.detach()})
