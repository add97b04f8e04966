"""ClocTask: samples to batches, batches to the paper's loss.

Legend: as in `model.py`; R regions of all images of a rank.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.data.stream import Drawn
from orchestrator.errors import InputError
from orchestrator.records import record
from orchestrator.training.task import Losses, TrainTask
from stages.blueprints import fill_from_checkpoint, tokenizer_files
from stages.cloc.batches import ClocBatch
from stages.cloc.collate import Collator
from stages.cloc.config import FAMILY, Blueprint
from stages.cloc.initial import draw_weights, fill_from_clip
from stages.cloc.model import Cloc
from stages.contrastive import contrast, over_ranks, ranks
from stages.samples import Sample
from stages.wordpieces import WordPieces


@record
class Weights:
    """How much each part of the loss counts, and what is no negative."""

    region: float = 1.0  # times the share of images with described regions: the paper's lambda
    grounding: float = 1.0
    conflict: float | None = 0.9  # cosine of two phrases above which they are no negatives of each other
    squared: bool = True  # the distance of boxes; the paper's formula does not show whether it is


@record
class Start:
    """Where the weights come from: a checkpoint, else a CLIP's folder, else chance."""

    checkpoint: Path | None = None
    clip: Path | None = None


class ClocTask(TrainTask[ClocBatch]):
    """Trains a CLOC on images with captions and described regions."""

    def __init__(
        self,
        blueprint: Blueprint,
        pieces: WordPieces,
        *,
        start: Start,
        weights: Weights,
        max_regions: int,
        chunk: int | None = None,
    ) -> None:
        """Checks the tokenizer against the model; `chunk` images are encoded at once, None: all of a rank's."""
        known = blueprint.text["vocab_size"]
        if pieces.size > known:
            raise InputError(f"the tokenizer has {pieces.size} tokens, the model {known}")
        self._blueprint, self._pieces, self._start, self._weights = blueprint, pieces, start, weights
        self._collator, self._chunk = Collator(blueprint, pieces, places=max_regions), chunk

    def build_model(self) -> nn.Module:
        """Builds the model; its weights come later."""
        return Cloc(self._blueprint)

    def load_weights(self, model: nn.Module) -> None:
        """Fills the model; what the start does not have is drawn from the seed. Collective: every rank must call."""
        loaded: Collection[str] = ()
        if self._start.checkpoint is not None:
            loaded = fill_from_checkpoint(model, self._start.checkpoint)
        elif self._start.clip is not None:
            loaded = fill_from_clip(model, self._start.clip).loaded
        draw_weights(model, torch.initial_seed(), keep=loaded)  # the engine has seeded torch with the stage's seed

    def collate(self, drawn: Sequence[Drawn]) -> ClocBatch:
        """Makes a batch; which regions of an image take part follows from seed, epoch and place, as its seed does."""
        return self._collator.batch([(Sample.from_members(one.key, one.members), one.seed) for one in drawn])

    def loss(self, model: nn.Module, batch: ClocBatch) -> Losses:
        """Computes L_CLIP + lambda (L_CLOC + L_grounding). Collective: every rank must call."""
        return cloc_loss(model, batch, self._weights, chunk=self._chunk)

    def describe(self) -> Mapping[str, Any]:
        """Returns the family, and everything needed to rebuild the model."""
        return {"family": FAMILY, "model": self._blueprint.to_plain()}

    def extras(self) -> Mapping[str, bytes]:
        """Returns the tokenizer's files, which travel with the weights."""
        return tokenizer_files(self._pieces)


def cloc_loss(model: nn.Module, batch: ClocBatch, weights: Weights, *, chunk: int | None) -> Losses:
    """Computes the loss over the batches of all ranks together, and so is the same on all of them.

    Its gradients are of such a size that their mean over ranks is the true one. Collective: every rank must call.
    """
    batch = batch.to(next(model.parameters()).device)
    out: dict[str, Tensor] = model(batch, chunk)
    captioned, real = batch.captioned_B, batch.real_BM
    clip = contrast(out["images_BD"][captioned], out["captions_BD"][captioned], out["scale"])
    regions = contrast(
        out["regions_BMD"][real], out["phrases_BMD"][real], out["region_scale"], conflict=weights.conflict
    )  # fmt: skip
    described, images, found = over_ranks(
        torch.stack([real.any(1).sum(), torch.tensor(len(real), device=real.device), real.sum()]).float()
    )
    errors_R4 = out["boxes_BM4"][real] - batch.boxes_BM4[real]
    grounding = distances(errors_R4, squared=weights.squared).sum() * ranks() / (4 * found.clamp(min=1))
    share = described / images
    total = clip + weights.region * share * (regions + weights.grounding * grounding)
    terms = {"clip": clip, "regions": regions, "grounding": grounding, "described": share}
    return Losses(total=total, terms={name: value.detach() for name, value in terms.items()})


def distances(errors_R4: Tensor, *, squared: bool) -> Tensor:
    """Measures how far boxes are off, each by its four numbers together: R."""
    squares_R = errors_R4.square().sum(-1)
    return squares_R if squared else (squares_R + 1e-12).sqrt()  # a root has no slope at zero
