"""PixClipTask: samples to pairs of a masked image and a text, and the contrast of three branches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from orchestrator.data.stream import Drawn
from orchestrator.records import record
from orchestrator.training.task import Losses, TrainTask
from stages.blueprints import fill_from_checkpoint, tokenizer_files
from stages.contrastive import contrast
from stages.pixclip.batches import PixClipBatch
from stages.pixclip.collate import Collator, Example
from stages.pixclip.config import FAMILY, Blueprint, PixClipConfig
from stages.pixclip.initial import draw_weights
from stages.pixclip.model import PixClip
from stages.pixclip.pairs import draw_pair, texts_of
from stages.pixclip.pretrained import fill_from_published
from stages.pixclip.texts import kept_embedding
from stages.samples import Sample
from stages.vision import decode_image
from stages.wordpieces import WordPieces


@record
class Branches:
    """How much each branch counts, and what stands against what."""

    masked: float
    crop: float
    roi: float
    roi_against: Literal["crop", "masked", "text"]
    conflict: float | None  # texts with a higher cosine are no negatives of each other

    @property
    def crops(self) -> bool:
        """Tells whether any branch looks at crops."""
        return self.crop > 0 or (self.roi > 0 and self.roi_against == "crop")


@record
class Start:
    """Where the weights come from: a checkpoint, else the folders that a config names, else chance."""

    checkpoint: Path | None = None
    folders: PixClipConfig | None = None


class PixClipTask(TrainTask[PixClipBatch]):
    """Trains a PixCLIP on regions with masks and texts."""

    def __init__(
        self,
        blueprint: Blueprint,
        pieces: WordPieces | None,
        *,
        start: Start,
        branches: Branches,
        crop_scale: float,
        whole_share: float,
        images_at_once: int | None = None,
    ) -> None:
        """`pieces`: the tokenizer of the model's own text model; None: samples bring embedded texts."""
        self._blueprint, self._pieces, self._start, self._branches = blueprint, pieces, start, branches
        self._whole_share, self._images_at_once = whole_share, images_at_once
        scale = crop_scale if branches.crops else None
        self._collator = Collator(blueprint.side_px, pieces, blueprint.max_tokens, crop_scale=scale)
        self._filled: Mapping[str, Any] = {}

    def build_model(self) -> nn.Module:
        """Builds the model; its weights come later."""
        return PixClip(self._blueprint)

    def load_weights(self, model: nn.Module) -> None:
        """Fills the model; what the start does not have is drawn from the seed. Collective: every rank must call."""
        loaded: frozenset[str] = frozenset()
        if self._start.checkpoint is not None:
            loaded = fill_from_checkpoint(model, self._start.checkpoint)
        elif self._start.folders is not None:
            loaded, self._filled = fill_from_published(model, self._start.folders)
        draw_weights(model, torch.initial_seed(), keep=loaded)  # the engine has seeded torch with the stage's seed

    def collate(self, drawn: Sequence[Drawn]) -> PixClipBatch:
        """Makes a batch; which region of a sample is looked at is a function of the sample's own seed."""
        return self._collator.batch([self._example(one) for one in drawn])

    def loss(self, model: nn.Module, batch: PixClipBatch) -> Losses:
        """Adds up the branches. Collective: every rank must call."""
        found = model(batch.to(next(model.parameters()).device), images_at_once=self._images_at_once)
        return branch_losses(found, self._branches)

    def describe(self) -> Mapping[str, Any]:
        """Returns the family, everything needed to rebuild the model, and what became of published weights."""
        facts = {"family": FAMILY, "model": self._blueprint.to_plain()}
        return {**facts, "published": self._filled} if self._filled else facts

    def extras(self) -> Mapping[str, bytes]:
        """Returns the tokenizer's files, which travel with the weights, where the model reads tokens."""
        return tokenizer_files(self._pieces)

    def _example(self, drawn: Drawn) -> Example:
        sample = Sample.from_members(drawn.key, drawn.members)
        pair = draw_pair(sample, drawn.seed, whole_share=self._whole_share)
        kept = kept_embedding(drawn, texts_of(sample), pair.text) if self._pieces is None else None
        return Example(image=decode_image(sample.image), pair=pair, embedding_E=kept)


def branch_losses(found: Mapping[str, Tensor], branches: Branches) -> Losses:
    """Contrasts what the model has embedded over all ranks. Collective: every rank must call.

    masked: the image through the mask with the text; crop: the window around the region with the same text; roi: what
    is pooled from the whole image's patches in the region's box, with the crop (or the text, or the masked image).
    """
    masked, texts, regions, scale = (found[name] for name in ("masked", "texts", "regions", "scale"))
    crops = found.get("crops", masked)
    against = {"crop": crops, "masked": masked, "text": texts}[branches.roi_against]
    pairs = {
        "masked": (branches.masked, masked, texts),
        "crop": (branches.crop, crops, texts),
        "roi": (branches.roi, regions, against),
    }
    total, terms = texts.sum() * 0 + regions.sum() * 0, dict[str, Tensor]()
    for name, (weight, one_BD, other_BD) in pairs.items():
        if weight > 0:
            term = contrast(one_BD, other_BD, scale, conflict=branches.conflict, alike_ND=texts)
            total = total + weight * term
            terms[name] = term.detach()
    return Losses(total=total, terms=terms)
