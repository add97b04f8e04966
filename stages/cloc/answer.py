"""ClocModel: a CLOC ready to embed images, texts and regions, and to say where something is.

Legend: as in `model.py`; N texts.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stages.cloc.collate import Collator
from stages.cloc.model import Cloc
from stages.prompter import square_box
from stages.vision import Box, Mask, box_of_mask
from stages.wordpieces import WordPieces

AT_ONCE = 64  # images or texts that are encoded together

Vectors = NDArray[np.float32]


class ClocModel:
    """A trained CLOC in one process. Masks are asked about by the boxes around them: CLOC knows boxes only."""

    def __init__(self, network: Cloc, pieces: WordPieces) -> None:
        """Takes a model whose weights are in place."""
        self.network = network.eval()
        self._pieces = pieces
        self._collator = Collator(network.blueprint, pieces, places=1)

    @property
    def pieces(self) -> WordPieces:
        """Returns the tokenizer."""
        return self._pieces

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image.Image], masks_HW: Sequence[Mask | None]) -> Vectors:
        """Embeds whole images, or the box around a mask where there is one: N x D, of unit length."""
        boxes = [None if mask_HW is None else box_of_mask(mask_HW) for mask_HW in masks_HW]
        found = [
            self.network.embed_images(seen_1PW) if box is None else self._regions(seen_1PW, image, [box])
            for image, box, seen_1PW in zip(images, boxes, self._encoded(images), strict=True)
        ]
        return _array(torch.cat(found)) if found else self._nothing()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Embeds texts: N x D, of unit length."""
        parts = [self._collator.texts(texts[first : first + AT_ONCE]) for first in range(0, len(texts), AT_ONCE)]
        found = [self.network.embed_texts(part.to(self._device)) for part in parts]
        return _array(torch.cat(found)) if found else self._nothing()

    @torch.inference_mode()
    def embed_regions(
        self,
        images: Sequence[Image.Image],
        boxes_xyxy_px: Sequence[Sequence[Sequence[float]]],
        masks_HW: Sequence[Sequence[Mask | None]],
    ) -> list[Vectors]:
        """Embeds what lies in boxes: for each image R x D, of unit length."""
        del masks_HW
        return [
            _array(self._regions(seen_1PW, image, boxes)) if boxes else self._nothing()
            for image, boxes, seen_1PW in zip(images, boxes_xyxy_px, self._encoded(images), strict=True)
        ]

    @torch.inference_mode()
    def refer_boxes(self, images: Sequence[Image.Image], expressions: Sequence[Sequence[str]]) -> list[list[Box]]:
        """Says for each expression which box of its image it means."""
        found: list[list[Box]] = []
        for image, texts, seen_1PW in zip(images, expressions, self._encoded(images), strict=True):
            phrases_1MD = torch.from_numpy(self.embed_texts(texts)).to(self._device)[None]
            boxes_M4 = self.network.locate(seen_1PW, phrases_1MD)[0] if texts else phrases_1MD[0]
            found.append([in_image(box, image) for box in boxes_M4.tolist()])
        return found

    def _encoded(self, images: Sequence[Image.Image]) -> Iterator[Tensor]:
        """Encodes images, some at a time, and gives them out one by one: 1 x P x W."""
        for first in range(0, len(images), AT_ONCE):
            pixels = [self._collator.pixels(image) for image in images[first : first + AT_ONCE]]
            yield from torch.split(self.network.encode(torch.stack(pixels).to(self._device)), 1)

    def _regions(self, tokens_BPW: Tensor, image: Image.Image, boxes: Sequence[Sequence[float]]) -> Tensor:
        boxes_1M4 = torch.tensor([[square_box(box, image.width, image.height) for box in boxes]], device=self._device)
        return self.network.embed_regions(tokens_BPW, boxes_1M4)[0]

    def _nothing(self) -> Vectors:
        return np.zeros((0, self.network.blueprint.embedding_size), dtype=np.float32)

    @property
    def _device(self) -> torch.device:
        return self.network.logit_scale.device


def in_image(box_unit: Sequence[float], image: Image.Image) -> Box:
    """Turns what the box head says into a box inside the image, at least a pixel wide and high."""
    side = max(image.size)
    x0, x1 = _edges(box_unit[0] * side, box_unit[2] * side, image.width)
    y0, y1 = _edges(box_unit[1] * side, box_unit[3] * side, image.height)
    return x0, y0, x1, y1


def _edges(first: float, second: float, limit: int) -> tuple[float, float]:
    low, high = sorted(min(max(edge, 0.0), float(limit)) for edge in (first, second))
    low = min(low, limit - 1.0)
    return low, max(high, low + 1.0)


def _array(vectors_ND: Tensor) -> Vectors:
    return np.asarray(vectors_ND.float().cpu().numpy(), dtype=np.float32)
