"""PixClipModel: a trained PixCLIP in one process, ready to embed images, regions and texts.

Legend: N images or texts, R regions of an image, D dimensions of the common space; as in `batches.py`.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from orchestrator.errors import InputError
from stages.pixclip.batches import Texts
from stages.pixclip.collate import Collator
from stages.pixclip.config import EncoderConfig
from stages.pixclip.encoder import TextEncoder, digest_of
from stages.pixclip.model import PixClip
from stages.pixclip.squares import squashed
from stages.vision import Box, Mask
from stages.windows import mask_of_box
from stages.wordpieces import WordPieces

AT_ONCE = 64  # images or texts that share the memory of one pass
Embedded = NDArray[np.float32]
_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class PixClipModel:
    """Embeds what masks show of images, and texts: cosines are how well they fit."""

    def __init__(self, network: PixClip, pieces: WordPieces | None) -> None:
        """Takes a model whose weights are in place, on the device where it is to work."""
        self.network = network.eval().requires_grad_(requires_grad=False)
        blueprint = network.blueprint
        self._collator = Collator(blueprint.side_px, pieces, blueprint.max_tokens, crop_scale=None)
        first = next(network.parameters())
        self._device, self._dtype = first.device, first.dtype
        self._encoder: TextEncoder | None = None

    def embed_images(self, images: Sequence[Image.Image], masks_HW: Sequence[Mask | None]) -> Embedded:
        """Embeds each image through its mask (None: the whole image): N x D, of unit length."""
        return self._seen(self._collator.squares(images[part], masks_HW[part]) for part in _parts(len(images)))

    def embed_whole_images(self, images: Sequence[Image.Image]) -> Embedded:
        """Embeds whole images, squashed, under plain ones, as the release's scripts for long texts do: N x D.

        Everywhere else a mask is normalised, in those scripts too, so that the model has never seen a plain one.
        """
        side_px = self.network.blueprint.side_px
        return self._seen(
            torch.from_numpy(np.stack([squashed(image, side_px) for image in images[part]]))
            for part in _parts(len(images))
        )

    def embed_masked(self, image: Image.Image, masks_HW: Sequence[Mask]) -> Embedded:
        """Embeds what each mask shows of an image: R x D, of unit length."""
        return self.embed_images([image] * len(masks_HW), masks_HW)

    def embed_regions(
        self,
        images: Sequence[Image.Image],
        boxes_xyxy_px: Sequence[Sequence[Box]],
        masks_HW: Sequence[Sequence[Mask | None]],
    ) -> list[Embedded]:
        """Embeds each region of each image through its mask, or through its box where it has none: R x D an image."""
        flat = [
            (image, mask_of_box(box, width_px=image.width, height_px=image.height) if mask_HW is None else mask_HW)
            for image, boxes, masks in zip(images, boxes_xyxy_px, masks_HW, strict=True)
            for box, mask_HW in zip(boxes, masks, strict=True)
        ]
        all_ND = self.embed_images([image for image, _ in flat], [mask_HW for _, mask_HW in flat])
        ends = np.cumsum([len(boxes) for boxes in boxes_xyxy_px])
        return list(np.split(all_ND, ends[:-1])) if len(ends) else []

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Embedded:
        """Embeds texts: N x D, of unit length."""
        parts = [self._read(texts[part]) for part in _parts(len(texts))]
        return _unit(parts, self.network.blueprint.embedding_size)

    @torch.inference_mode()
    def _seen(self, squares: Iterable[Tensor]) -> Embedded:
        parts = []
        for squares_B4SS in squares:
            boxes_B4 = torch.zeros(len(squares_B4SS), 4)  # nobody asks for what lies in them
            placed = squares_B4SS.to(self._device, self._dtype), boxes_B4.to(self._device)
            parts.append(self.network.look(placed)[0])
        return _unit(parts, self.network.blueprint.embedding_size)

    def _read(self, texts: Sequence[str]) -> Tensor:
        if self.network.text_model is not None:
            return self.network.read(self._collator.tokens(texts).to(self._device))
        if self._encoder is None:
            self._encoder = self._open_encoder()
        embedded_BE = self._encoder.embed(texts).to(self._device, self._dtype)
        return self.network.read(Texts(embeddings_BE=embedded_BE))

    def _open_encoder(self) -> TextEncoder:
        """Opens the language model that embedded the texts of its training, where it lay then."""
        about: dict[str, Any] = dict(self.network.blueprint.encoder or {})
        config = EncoderConfig(
            path=Path(about["path"]),
            max_tokens=about["max_tokens"],
            template=about["template"],
            bidirectional=about["bidirectional"],
        )
        if not config.path.is_dir():
            raise InputError(f"texts are read by the language model of {config.path}, which is not there: put it there")
        if digest_of(config) != about["digest"]:
            raise InputError(f"{config.path} is not the language model that read the texts of this model's training")
        return TextEncoder(config, precision=_TYPES[about["precision"]], device=str(self._device))


def _parts(count: int) -> Iterator[slice]:
    """Cuts images or texts into those that share a pass."""
    return (slice(at, at + AT_ONCE) for at in range(0, count, AT_ONCE))


def _unit(parts: Sequence[Tensor], size: int) -> Embedded:
    joined_ND = torch.cat(list(parts)) if parts else torch.zeros(0, size)
    unit_ND: Embedded = functional.normalize(joined_ND.float(), dim=-1).cpu().numpy()
    return unit_ND
