"""PixelLLMTask: samples to batches, batches to loss, for all stages of PixelLLM."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.data.stream import Drawn
from orchestrator.records import record
from orchestrator.training.task import Losses, TrainTask
from stages.blueprints import fill_from_checkpoint, tokenizer_files
from stages.pixelllm.augment import PUBLISHED, augmented
from stages.pixelllm.batches import IGNORED, PixelBatch
from stages.pixelllm.collate import Collator, Example, Limits
from stages.pixelllm.config import FAMILY, Blueprint, PixelLLMConfig
from stages.pixelllm.detector import Proposed, proposal_loss
from stages.pixelllm.initial import draw_weights
from stages.pixelllm.kinds import DENSE, idle_parts
from stages.pixelllm.losses import DICE, FOCAL, caption_loss, location_loss, mask_loss
from stages.pixelllm.model import PixelLLM
from stages.pixelllm.pretrained import fill_from_folders, fill_masks
from stages.pixelllm.tasks import Rules, rows_of
from stages.samples import Sample
from stages.vision import decode_image
from stages.wordpieces import WordPieces


@record
class Weights:
    """How much each part of the loss counts."""

    caption: float = 1.0
    location: float = 0.1
    detection: float = 1.0
    mask: float = 1.0
    smoothing: float = 0.1  # of the words to be said


@record
class Start:
    """Where the weights come from: a checkpoint, else the folders that a config names, else chance."""

    checkpoint: Path | None = None
    masks: Path | None = None  # SAM's folder, beside a checkpoint that draws no masks yet
    folders: PixelLLMConfig | None = None


class PixelLLMTask(TrainTask[PixelBatch]):
    """Trains a PixelLLM on sources that each have one of the kinds of `kinds.py`."""

    def __init__(
        self,
        blueprint: Blueprint,
        pieces: WordPieces,
        kinds: Mapping[str, str],
        *,
        start: Start,
        weights: Weights,
        rules: Rules,
        limits: Limits,
    ) -> None:
        """Checks the tokenizer against the model."""
        self._blueprint, self._start, self._weights = blueprint, start, weights
        self._kinds, self._rules, self._limits = kinds, rules, limits
        self.pieces = pieces
        self.collator = Collator(blueprint, pieces, limits, idle=idle_parts(kinds.values()))

    def build_model(self) -> nn.Module:
        """Builds the model; its weights come later."""
        return PixelLLM(self._blueprint)

    def load_weights(self, model: nn.Module) -> None:
        """Fills the model; what the start does not have is drawn from the seed. Collective: every rank must call."""
        loaded: frozenset[str] = frozenset()
        if self._start.checkpoint is not None:
            added = ("detector.", "masks.")  # what a stage may give to a model that goes on
            loaded = fill_from_checkpoint(
                model, self._start.checkpoint, may_lack=lambda name: name.startswith(added) or "lora_" in name
            )
            if self._start.masks is not None and not any(name.startswith("masks.") for name in loaded):
                loaded |= fill_masks(model, self._start.masks)
        elif self._start.folders is not None:
            loaded = fill_from_folders(model, self._start.folders)
        draw_weights(model, torch.initial_seed(), keep=loaded)  # the engine has seeded torch with the stage's seed

    def collate(self, drawn: Sequence[Drawn]) -> PixelBatch:
        """Makes a batch; wordings and the choice of regions are functions of each sample's own seed."""
        return self.collator.batch([self.example(one) for one in drawn])

    def example(self, drawn: Drawn) -> Example:
        """Turns one sample into an image with rows, in the way of its source's kind."""
        kind, sample = self._kinds[drawn.source], Sample.from_members(drawn.key, drawn.members)
        rows = rows_of(kind, sample, seed=drawn.seed, rules=self._rules)
        boxes = [region.box_xyxy_px for region in sample.regions if not region.crowd]
        example = Example(
            image=decode_image(sample.image),
            rows=tuple(rows),
            boxes_xyxy_px=tuple(boxes) if kind == DENSE else None,
        )
        rule = PUBLISHED.get(kind) if self._rules.augments else None
        return example if rule is None else augmented(example, rule, seed=drawn.seed)

    def tokens_of(self, batch: PixelBatch) -> int:
        """Counts what the language model reads: the image's tokens, contexts and texts."""
        visual = len(batch.image_N) * self._blueprint.extractor.tokens
        return int(batch.is_context_NM.sum()) + batch.ids_NL.numel() + visual

    def loss(self, model: nn.Module, batch: PixelBatch) -> Losses:
        """Adds up what the batch teaches."""
        return pixelllm_loss(model, batch, self._weights)

    def describe(self) -> Mapping[str, Any]:
        """Returns the family and everything needed to rebuild the model and to ask it."""
        limits = {"text": self._limits.text, "context": self._limits.context}
        return {"family": FAMILY, "model": self._blueprint.to_plain(), "limits": limits}

    def extras(self) -> Mapping[str, bytes]:
        """Returns the tokenizer's files, which travel with the weights."""
        return tokenizer_files(self.pieces)


def pixelllm_loss(model: nn.Module, batch: PixelBatch, weights: Weights) -> Losses:
    """Adds up what a batch teaches: a part that it says nothing of weighs nothing, but is computed."""
    batch = batch.to(next(model.parameters()).device)
    said: dict[str, Tensor] = model(batch)
    caption = caption_loss(said["logits_TV"], said["targets_T"], ignored=IGNORED, smoothing=weights.smoothing)
    inside_N2 = batch.inside_B2[batch.image_N]
    location = location_loss(said["points_NL22"], batch.corners_NL22, batch.is_located_NL, inside_N2)
    total = weights.caption * caption + weights.location * location
    terms = {"caption": caption.detach(), "location_px": location.detach()}
    if "masks_S3hw" in said:
        focal, dice, score = mask_loss(said["masks_S3hw"], said["scores_S3"], batch.masks_SHW)
        total = total + weights.mask * (FOCAL * focal + DICE * dice + score)
        terms |= {"mask_focal": focal.detach(), "mask_dice": dice.detach(), "mask_score": score.detach()}
    if (proposed := Proposed.read(said)) is not None:
        heat, sides = proposal_loss(proposed, batch.boxes_G4, batch.box_image_G)
        # weighted as CenterNet2 does; of other tasks' images nothing is known, not even that there are no boxes
        total = total + float(batch.proposes) * weights.detection * (0.5 * heat + sides)
        terms |= {"middles": heat.detach(), "sides": sides.detach()}
    return Losses(total=total, terms=terms)
