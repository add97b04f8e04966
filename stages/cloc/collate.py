"""Samples to a ClocBatch; the same code for training and for answering.

Legend: as in `batches.py`.
"""

import random
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from orchestrator.errors import InputError
from stages.cloc.batches import ClocBatch, Texts
from stages.cloc.config import Blueprint
from stages.prompter import square_box, square_pixels
from stages.samples import Region, Sample
from stages.vision import Box, decode_image
from stages.wordpieces import WordPieces

WHOLE = (0.0, 0.0, 1.0, 1.0)


class Collator:
    """Builds batches for one model and one tokenizer."""

    def __init__(self, blueprint: Blueprint, pieces: WordPieces, *, places: int) -> None:
        """Says for how many regions of an image there are places."""
        self._blueprint, self._pieces, self._places = blueprint, pieces, places

    def batch(self, drawn: Sequence[tuple[Sample, int]]) -> ClocBatch:
        """Makes a batch of samples, each with the seed that chooses its regions and their words."""
        chosen = [self._chosen(sample, random.Random(seed)) for sample, seed in drawn]  # noqa: S311 - no secret
        samples = [sample for sample, _ in drawn]
        texts = self.texts([text for regions in chosen for _, text in regions])
        shape = (len(samples), self._places)
        return ClocBatch(
            pixels_BCHW=torch.stack([self.pixels(decode_image(sample.image)) for sample in samples]),
            captions=self.texts([sample.caption for sample in samples]),
            captioned_B=torch.tensor([bool(sample.caption.strip()) for sample in samples]),
            boxes_BM4=torch.tensor([[box for box, _ in regions] for regions in chosen]),
            phrases=Texts(texts.ids.view(*shape, -1), texts.last.view(shape)),
            real_BM=torch.tensor([[bool(text) for _, text in regions] for regions in chosen]),
        )

    def pixels(self, image: Image.Image) -> Tensor:
        """Scales an image by its longer side and pads it right and below: 3 x H x W."""
        return square_pixels(image, self._blueprint.image_size)

    def texts(self, texts: Sequence[str]) -> Texts:
        """Encodes texts: N x L, as long as the longest, cut where one has too many tokens."""
        rows = [self._ids(text) for text in texts]
        longest = max(map(len, rows))
        ids_NL = [row + [self._pieces.pad_id] * (longest - len(row)) for row in rows]
        return Texts(torch.tensor(ids_NL), torch.tensor([len(row) - 1 for row in rows]))

    def _ids(self, text: str) -> list[int]:
        pieces = self._pieces
        words = pieces.encode(text.strip().lower() if self._blueprint.lower_case else text.strip())
        start = [pieces.start_id] if pieces.start_id != pieces.pad_id else []  # CLIP's texts begin with one
        kept = [*start, *words][: self._blueprint.max_tokens - 1]
        return [*kept, pieces.end_id]

    def _chosen(self, sample: Sample, chance: random.Random) -> list[tuple[Box, str]]:
        """Draws as many regions as there are places, each with one of its phrases; empty words where there are none."""
        told = [(region, words) for region in sample.regions if not region.crowd and (words := phrases_of(region))]
        if not told and not sample.caption.strip():
            raise InputError(f"sample {sample.key!r} has neither a caption nor a region with words")
        drawn = chance.sample(told, min(len(told), self._places))
        found = [(square_box(region.box_xyxy_px, sample.width_px, sample.height_px), chance.choice(words))
                 for region, words in drawn]  # fmt: skip
        return found + [(WHOLE, "")] * (self._places - len(found))


def phrases_of(region: Region) -> list[str]:
    """Lists the short texts of a region; its caption where it has none."""
    short = [text.strip() for text in (region.phrase, *region.more_phrases) if text.strip()]
    return short or [text for text in (region.caption.strip(),) if text]
