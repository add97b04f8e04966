"""Pix2CapModel: a trained model in one process, ready to segment and describe.

Legend: Q queries, H W pixels of the square or the picture.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from stages.family import DescribedSegment
from stages.pix2cap.collate import Collator, Placement
from stages.pix2cap.model import Pix2Cap, Seen
from stages.pix2cap.panoptic import find_segments
from stages.wordpieces import WordPieces


class Pix2CapModel:
    """Cuts pictures into segments, each with a class and a caption of its own."""

    def __init__(self, model: Pix2Cap, words: WordPieces) -> None:
        """Takes a model whose weights are in place, on the device where it is to work."""
        self.network, self.words = model.eval().requires_grad_(requires_grad=False), words
        self.collator = Collator(model.blueprint, words)
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def segment(self, images: Sequence[Image.Image], *, max_new_tokens: int) -> list[tuple[DescribedSegment, ...]]:
        """Finds the segments of each picture, that do not overlap, and describes each."""
        return [self._segmented(image, max_new_tokens) for image in images]  # one by one: full-size masks are large

    def _segmented(self, image: Image.Image, max_new_tokens: int) -> tuple[DescribedSegment, ...]:
        blueprint, place = self.network.blueprint, self.collator.whole(image)
        seen = self.network.see(self.collator.pixels(image, place)[None].to(self._device))
        score_Q, category_Q = seen.class_logits_KBQC[-1, 0].float().softmax(-1).max(-1)
        kept = (category_Q < len(blueprint.categories)) & (score_Q > blueprint.least_score)
        found = find_segments(
            score_Q[kept],
            category_Q[kept],
            _at_image_size(seen.mask_logits[-1][0, kept], place, image, blueprint.image_px).sigmoid(),
            [category.thing for category in blueprint.categories],
            least_overlap=blueprint.least_overlap,
        )
        queries = kept.nonzero()[:, 0][[one.query for one in found]]
        captions = self._captions(seen, queries, max_new_tokens)
        categories = [blueprint.categories[one.category] for one in found]
        return tuple(
            DescribedSegment(
                mask_HW=one.mask_HW.cpu().numpy(),
                category=category.name,
                category_id=category.id,
                is_thing=category.thing,
                score=one.score,
                caption=caption,
            )
            for one, category, caption in zip(found, categories, captions, strict=True)
        )

    def _captions(self, seen: Seen, query_N: Tensor, max_new_tokens: int) -> list[str]:
        if not len(query_N):
            return []
        zero_N = torch.zeros_like(query_N)
        written = self.network.captioner.write(
            seen.objects(zero_N + len(seen.mask_logits) - 1, zero_N, query_N),
            begin=self.words.start_id,
            end=self.words.end_id,
            max_tokens=min(self.network.blueprint.max_tokens, max_new_tokens + 1),
        )
        return [self.words.decode(ids) for ids in written]


def _at_image_size(logits_Qhw: Tensor, place: Placement, image: Image.Image, side_px: int) -> Tensor:
    """Enlarges mask logits to the square, cuts out the picture, and brings it to its own size."""
    if not len(logits_Qhw):
        return logits_Qhw.new_zeros(0, image.height, image.width)
    square = _resized(logits_Qhw.float(), (side_px, side_px))
    return _resized(square[:, : place.height_px, : place.width_px], (image.height, image.width))


def _resized(logits_QHW: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(logits_QHW[None], size=size, mode="bilinear", align_corners=False)[0]
