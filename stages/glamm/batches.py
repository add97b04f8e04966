"""What one step of GLaMM reads, as named tensors.

Legend: B images, L tokens, R boxes of all images together, M masks of an image (padded), C channels, H W pixels,
K points of a box, V words of the vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100  # label of a token that nobody predicts


@dataclass(slots=True)
class GlammBatch:
    """A micro-batch, of whatever kind: an image without boxes or masks simply has none of them."""

    clip_pixels_BCHW: Tensor  # normalised, for the global image encoder
    sam_pixels_BCHW: Tensor  # normalised and padded right and below, for the grounding image encoder
    sam_sizes_B2: Tensor  # height and width of the image inside the padded square
    ids_BL: Tensor
    labels_BL: Tensor  # the id itself where the assistant speaks, else IGNORED
    attention_BL: Tensor  # bool; False = padding, on the right
    is_image_BL: Tensor  # bool; places of the image tokens
    is_box_BL: Tensor  # bool; places of <bbox>, as many as there are boxes
    boxes_R4: Tensor  # xyxy in units of the image (0..1), in the order of their places
    box_image_R: Tensor  # which image a box lies in
    seg_place_BM: Tensor  # position of the token before each [SEG]; 0 where there is no mask
    has_mask_BM: Tensor  # bool
    masks: list[Tensor]  # per image: M_i x H x W, 0 or 1, at the image's own size

    def to(self, device: str | torch.device) -> "GlammBatch":
        """Moves every tensor to a device."""
        moved = {name: getattr(self, name).to(device) for name in self.__slots__ if name != "masks"}
        return GlammBatch(**moved, masks=[mask.to(device) for mask in self.masks])


@dataclass(slots=True)
class WordsBatch:
    """A micro-batch of described regions, for the pre-training of the image encoder (see `words.py`)."""

    clip_pixels_BCHW: Tensor  # normalised, for the global image encoder
    boxes_R4: Tensor  # xyxy in units of the image (0..1)
    points_RK2: Tensor  # xy inside the box, in units of the image
    box_image_R: Tensor  # which image a box lies in
    words_RV: Tensor  # how much each word counts in the description of a box; adds up to one

    def to(self, device: str | torch.device) -> "WordsBatch":
        """Moves every tensor to a device."""
        return WordsBatch(**{name: getattr(self, name).to(device) for name in self.__slots__})
