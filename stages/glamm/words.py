"""Pre-training of the image encoder: each patch of a region is asked which words its description holds.

A full-size run begins with a CLIP, whose patches are told apart by words already. A tiny model has none, and a language
model that must learn to look while there is nothing to see yet learns neither. So the words are read straight off the
image tokens first, by the language model's own head: classification of a text's tokens as a bag, each weighted by how
rare it is (SuperClass, Huang et al. 2024, arXiv:2411.03313), for regions in place of images.

Legend: R regions, K points in each, V words of the vocabulary.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.data.reader import ShardSet
from orchestrator.data.stream import Drawn
from orchestrator.errors import InputError
from orchestrator.training.task import Losses, TrainTask
from stages.glamm.batches import WordsBatch
from stages.glamm.conversations import described
from stages.glamm.task import GlammTask
from stages.glamm.tokenizer import Vocabulary
from stages.samples import Sample
from stages.vision import decode_image

POINTS = 2  # of each region
_INSIDE = 0.8  # of a box's sides: points near its corners rarely lie on what it is about


class WordsTask(TrainTask[WordsBatch]):
    """Trains the image encoder, the projector, the region encoder and the head of a GLaMM; nothing else is run."""

    def __init__(self, glamm: GlammTask, rarity_V: Tensor, *, max_regions: int) -> None:
        """Takes the model and vocabulary from `glamm`; `rarity_V` weighs the words (see `rarities`)."""
        self._glamm = glamm
        self._rarity_V = rarity_V
        self._max_regions = max_regions

    def build_model(self) -> nn.Module:
        """Builds a whole GLaMM."""
        return self._glamm.build_model()

    def load_weights(self, model: nn.Module) -> None:
        """Fills it from folders or by chance. Collective: every rank must call."""
        self._glamm.load_weights(model)

    def collate(self, drawn: Sequence[Drawn]) -> WordsBatch:
        """Draws points in some regions of each sample, by its own seed."""
        pixels, boxes, points, owner, words = [], [], [], [], []
        for place, one in enumerate(drawn):
            sample, chance = Sample.from_members(one.key, one.members), random.Random(one.seed)  # noqa: S311
            image = decode_image(sample.image)
            pixels.append(self._glamm.collator.clip_pixels(image))
            for region, text in described(sample.regions, chance, self._max_regions):
                box_4 = self._glamm.collator.boxes([region.box_xyxy_px], image)[0]
                boxes.append(box_4)
                points.append(_points(box_4, chance))
                owner.append(place)
                words.append(_bag(self._glamm.vocabulary, text, self._rarity_V))
        if not boxes:
            raise InputError(f"no region with a description in {', '.join(one.key for one in drawn)}")
        return WordsBatch(
            clip_pixels_BCHW=torch.stack(pixels),
            boxes_R4=torch.stack(boxes),
            points_RK2=torch.stack(points),
            box_image_R=torch.tensor(owner),
            words_RV=torch.stack(words),
        )

    def loss(self, model: nn.Module, batch: WordsBatch) -> Losses:
        """Means the cross-entropy of each bag, over its points' patches and over its region token."""
        return words_loss(model, batch)

    def describe(self) -> Mapping[str, Any]:
        """Returns the family and everything needed to rebuild the model."""
        return self._glamm.describe()

    def extras(self) -> Mapping[str, bytes]:
        """Returns the tokenizer's files."""
        return self._glamm.extras()


def words_loss(model: nn.Module, batch: WordsBatch) -> Losses:
    """Means the cross-entropy of each bag, over its points' patches and over its region token."""
    batch = batch.to(next(model.parameters()).device)
    out: dict[str, Tensor] = model(batch)
    patches = _cross_entropy(out["patch_logits_RKV"], batch.words_RV[:, None])
    regions = _cross_entropy(out["region_logits_RV"], batch.words_RV)
    terms = {"patch_words": patches.detach(), "region_words": regions.detach()}
    return Losses(total=patches + regions, terms=terms)


def rarities(vocabulary: Vocabulary, shards: Sequence[Path], *, samples: int = 2000) -> Tensor:
    """Weighs each word by log(regions / regions that have it): V; what every description has weighs nothing."""
    seen: Counter[int] = Counter()
    regions = 0
    for path in shards:
        found = ShardSet(path)
        for number in range(min(len(found), samples)):
            for _, text in described(Sample.from_members(*found.read(number)).regions, random.Random(0), None):  # noqa: S311
                seen.update(set(vocabulary.encode(f" {text}")[0]))
                regions += 1
        found.close()
    weights = [math.log(regions / seen[word]) if seen[word] else 0.0 for word in range(vocabulary.size)]
    return torch.tensor(weights)


def _bag(vocabulary: Vocabulary, text: str, rarity_V: Tensor) -> Tensor:
    """Spreads a weight of one over the words of a text: V."""
    words = sorted(set(vocabulary.encode(f" {text}")[0]))
    bag_V = torch.zeros(vocabulary.size)
    bag_V[words] = rarity_V[words]
    return bag_V / bag_V.sum().clamp(min=1e-6)


def _points(box_4: Tensor, chance: random.Random) -> Tensor:
    offsets_K2 = torch.tensor([[chance.uniform(-1, 1), chance.uniform(-1, 1)] for _ in range(POINTS)])
    centre_2, reach_2 = (box_4[:2] + box_4[2:]) / 2, (box_4[2:] - box_4[:2]) / 2
    return centre_2 + _INSIDE * reach_2 * offsets_K2


def _cross_entropy(logits: Tensor, bags: Tensor) -> Tensor:
    return -(logits.float().log_softmax(-1) * bags).sum(-1).mean()
