"""What one step of Pix2Cap reads, as named tensors.

Legend: B images, M segments of one image, S captions of all images together, L tokens, C colours, H W pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class Pix2CapBatch:
    """A micro-batch; an image may have no segments, a segment no caption."""

    pixels_BCHW: Tensor  # normalised, in the square; right and below of the image it is grey
    masks: list[Tensor]  # per image: M x H x W, bool, in the square
    classes: list[Tensor]  # per image: M, the place of the category among the model's
    ids_SL: Tensor  # of captions, beginning and end included, padded right
    wanted_SL: Tensor  # bool: the tokens that are to be predicted, i.e. neither the first nor padding
    image_S: Tensor  # which image a caption is about
    mask_S: Tensor  # which of its image's masks

    def to(self, device: str | torch.device) -> "Pix2CapBatch":
        """Moves every tensor to a device."""
        lists: dict[str, Any] = {name: [one.to(device) for one in getattr(self, name)] for name in ("masks", "classes")}
        others = [name for name in self.__slots__ if name not in lists]
        return Pix2CapBatch(**lists, **{name: getattr(self, name).to(device) for name in others})
