"""GlammTask: samples to batches, batches to loss, for all stages of GLaMM but the one of words."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.data.stream import Drawn
from orchestrator.errors import InputError
from orchestrator.records import record
from orchestrator.training.parallel.losses import word_losses
from orchestrator.training.task import Losses, TrainTask
from stages.blueprints import fill_from_checkpoint, tokenizer_files
from stages.glamm.batches import GlammBatch
from stages.glamm.collate import Collator, Example
from stages.glamm.config import FAMILY, Blueprint, GlammConfig
from stages.glamm.conversations import Rules, converse
from stages.glamm.decoder import Comparison, summed_mask_losses
from stages.glamm.features import read_features
from stages.glamm.initial import draw_weights
from stages.glamm.model import Glamm
from stages.glamm.pretrained import fill_from_published
from stages.glamm.prompts import Conversation
from stages.glamm.tokenizer import Vocabulary
from stages.point_rule import PointRule
from stages.samples import Sample
from stages.vision import decode_image, mask_from_rle, union


@record
class Weights:
    """How much each part of the loss counts, and where masks are compared."""

    text: float = 1.0
    bce: float = 2.0
    dice: float = 0.5
    mask_side_px: int | None = None  # masks are brought to this longest side; None: compared at their image's own size
    mask_points: PointRule | None = None  # None: compared at every pixel of that size


@record
class Start:
    """Where the weights come from: a checkpoint, else the folders that a config names, else chance."""

    checkpoint: Path | None = None
    folders: GlammConfig | None = None


class GlammTask(TrainTask[GlammBatch]):
    """Trains a GLaMM on sources that each have one of the kinds of `conversations.py`."""

    cut_logits = True
    blocks = ("LlamaDecoderLayer", "CLIPEncoderLayer", "SamVisionLayer")  # what lies between follows from the data

    def __init__(  # noqa: PLR0913 - everything by name
        self,
        blueprint: Blueprint,
        vocabulary: Vocabulary,
        kinds: Mapping[str, str],
        *,
        start: Start,
        weights: Weights,
        max_regions: int,
        max_targets: int = 3,
        wordings: int | None = None,
        features: bool = False,
    ) -> None:
        """Checks the vocabulary against the model; how samples are spoken of is explained by `Rules`.

        `features`: samples bring what the frozen image encoders made of their images.
        """
        if vocabulary.size != blueprint.vocabulary_size:
            raise InputError(f"the tokenizer has {vocabulary.size} tokens, the model {blueprint.vocabulary_size}")
        self._blueprint, self._start, self._weights = blueprint, start, weights
        self.vocabulary = vocabulary
        self._kinds, self._features = kinds, features
        self._rules = Rules(end=vocabulary.end, max_regions=max_regions, max_targets=max_targets, wordings=wordings)
        self.collator = Collator(blueprint, vocabulary, mask_side_px=weights.mask_side_px)
        self._filled: Mapping[str, Any] = {}

    def build_model(self) -> nn.Module:
        """Builds the model; its weights come later."""
        return Glamm(self._blueprint)

    def load_weights(self, model: nn.Module) -> None:
        """Fills the model; what the start does not have is drawn from the seed. Collective: every rank must call."""
        loaded: frozenset[str] = frozenset()
        if self._start.checkpoint is not None:
            loaded = fill_from_checkpoint(model, self._start.checkpoint, may_lack=lambda name: "lora_" in name)
        elif self._start.folders is not None:
            filled = fill_from_published(model, self._start.folders)
            loaded, self._filled = frozenset(filled.report.loaded), filled.facts()
        draw_weights(model, torch.initial_seed(), keep=loaded)  # the engine has seeded torch with the stage's seed

    def collate(self, drawn: Sequence[Drawn]) -> GlammBatch:
        """Makes a batch; wordings and the order of regions are functions of each sample's own seed.

        Samples that were drawn for one place share a sequence.
        """
        packs = [len(list(shared)) for _, shared in groupby(drawn, key=attrgetter("place"))]
        return self.collator.batch([self.example(one) for one in drawn], packs=packs)

    def example(self, drawn: Drawn) -> Example:
        """Turns one sample into an image with its conversation, in the way of its source's kind."""
        sample = Sample.from_members(drawn.key, drawn.members)
        conversation = self._conversation(drawn.source, sample, drawn.seed)
        masks = tuple(union(mask_from_rle(part) for part in parts) for parts in conversation.masks)
        features = read_features(drawn) if self._features else None
        image = decode_image(sample.image)
        return Example(image=image, conversation=conversation, masks=masks, features=features, seed=drawn.seed)

    def tokens_of(self, batch: GlammBatch) -> int:
        """Counts what the language model reads: words, and the places of the image."""
        return int(batch.attention_BL.sum())

    def length_of(self, source: str, key: str, members: Mapping[str, bytes]) -> int:
        """Counts the tokens of the conversation in one wording; another wording differs by a few."""
        conversation = self._conversation(source, Sample.from_members(key, members), seed=0)
        return len(self.collator.tokens(conversation).ids)

    def _conversation(self, source: str, sample: Sample, seed: int) -> Conversation:
        return converse(self._kinds[source], sample, seed=seed, rules=self._rules)

    def loss(self, model: nn.Module, batch: GlammBatch) -> Losses:
        """Adds up text, mask cross-entropy and Dice; the masks weigh nothing where there are none."""
        canvas, vocabulary = self._blueprint.canvas_px, self._blueprint.vocabulary_size
        return glamm_loss(model, batch, self._weights, canvas=canvas, vocabulary=vocabulary)

    def describe(self) -> Mapping[str, Any]:
        """Returns the family, everything needed to rebuild the model, and what became of published weights."""
        facts = {"family": FAMILY, "model": self._blueprint.to_plain()}
        return {**facts, "published": self._filled} if self._filled else facts

    def extras(self) -> Mapping[str, bytes]:
        """Returns the tokenizer's files, which travel with the weights."""
        return tokenizer_files(self.vocabulary)


def glamm_loss(model: nn.Module, batch: GlammBatch, weights: Weights, *, canvas: int, vocabulary: int) -> Losses:
    """Adds up text, mask cross-entropy and Dice of a batch, moved to where the model is."""
    batch = batch.to(next(model.parameters()).device)
    out: dict[str, Tensor] = model(batch)
    text = text_loss(out["text_logits_TV"], out["targets_T"], vocabulary=vocabulary)
    side = weights.mask_side_px
    if side is None:
        insides = [(height, width) for height, width in batch.sam_sizes_B2.tolist()]
    else:  # the decoder's square is as large as the masks are: no pixel more
        insides, canvas = [(mask.shape[-2], mask.shape[-1]) for mask in batch.masks], side
    where = Comparison(canvas=canvas, insides=insides, points=weights.mask_points)
    bce, dice, count = summed_mask_losses(out["mask_logits_NHW"], batch.masks, batch.seg_seed_N, where)
    bce, dice = bce / (count + 1e-8), dice / (count + 1e-8)
    total = weights.text * text + weights.bce * bce + weights.dice * dice
    return Losses(total=total, terms={"text": text.detach(), "bce": bce.detach(), "dice": dice.detach()})


def text_loss(logits_TV: Tensor, targets_T: Tensor, *, vocabulary: int) -> Tensor:
    """Means the cross-entropy over predicted tokens; zero, with a graph, where there is none."""
    if not len(targets_T):
        return logits_TV.float().sum() * 0
    return word_losses(logits_TV, targets_T, vocabulary=vocabulary).mean()
