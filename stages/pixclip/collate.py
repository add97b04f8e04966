"""Images, masks and texts to what the model reads; the same code for training and for answering.

Legend: as in `batches.py`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from orchestrator.records import record
from stages.pixclip.batches import PixClipBatch, Texts
from stages.pixclip.pairs import Pair
from stages.pixclip.squares import seen_through
from stages.pixclip.texts import tokens_of
from stages.vision import Mask
from stages.windows import WHITE, around, whole
from stages.wordpieces import WordPieces


@record
class Example:
    """An image with what of it is looked at, and the text about that; embedded, where a language model has read it."""

    image: Image.Image
    pair: Pair
    embedding_E: Tensor | None = None


class Collator:
    """Builds batches for one model."""

    def __init__(self, side_px: int, pieces: WordPieces | None, max_tokens: int, *, crop_scale: float | None) -> None:
        """`pieces`: the model's own tokenizer, if it has one. `crop_scale`: None where nobody looks at crops."""
        self._side, self._pieces, self._max_tokens, self._crop_scale = side_px, pieces, max_tokens, crop_scale

    def batch(self, examples: Sequence[Example]) -> PixClipBatch:
        """Makes a batch of pairs."""
        wholes = [seen_through(whole(one.image), one.image, one.pair.mask_HW, self._side) for one in examples]
        boxes = [whole(one.image).unit_box(one.pair.box_xyxy_px) for one in examples]
        return PixClipBatch(
            whole_B4SS=torch.from_numpy(np.stack(wholes)),
            crops_B4SS=None if self._crop_scale is None else self._crops(examples, self._crop_scale),
            boxes_B4=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            texts=self._texts(examples),
        )

    def squares(self, images: Sequence[Image.Image], masks_HW: Sequence[Mask | None]) -> Tensor:
        """Pads images with their masks to squares: B x 4 x S x S. None: the whole image."""
        both = zip(images, masks_HW, strict=True)
        squares = [seen_through(whole(image), image, mask_HW, self._side) for image, mask_HW in both]
        return torch.from_numpy(np.stack(squares))

    def tokens(self, texts: Sequence[str]) -> Texts:
        """Encodes texts with the model's own tokenizer."""
        assert self._pieces is not None  # noqa: S101 - asked of models with a text model only
        return tokens_of(self._pieces, texts, self._max_tokens)

    def _texts(self, examples: Sequence[Example]) -> Texts:
        embedded = [one.embedding_E for one in examples if one.embedding_E is not None]
        if embedded:
            return Texts(embeddings_BE=torch.stack(embedded))
        return self.tokens([one.pair.text for one in examples])

    def _crops(self, examples: Sequence[Example], scale: float) -> Tensor:
        crops = []
        for one in examples:
            if one.pair.mask_HW is None:  # the whole image has nothing around it
                crops.append(seen_through(whole(one.image), one.image, None, self._side))
                continue
            window = around(one.pair.box_xyxy_px, scale)
            crops.append(seen_through(window, one.image, one.pair.mask_HW, self._side, fill=WHITE))
        return torch.from_numpy(np.stack(crops))
