"""What one step of GLaMM reads, as named tensors.

Legend: B images, each with its conversation; L tokens, M masks of one image, N masks of all images together (in `Seen`:
patches of one), P images that have masks (or one, where none has), R boxes of all images together, T predicted tokens,
C channels, H W pixels, K points of a box (in `Seen`: hidden states), V words of the vocabulary.
Where conversations are packed, B counts sequences in what ends with L: several images then share one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100  # label of a token that nobody predicts


@dataclass(slots=True)
class Seen:
    """What the frozen image encoders made of the images: kept by `glamm_features`, read in the place of pixels."""

    patches_KBNC: Tensor  # of the K hidden states that are read (`Blueprint.read_states`), without the class token
    images_PCHW: Tensor  # of the grounding image encoder; never none

    def to(self, device: str | torch.device) -> "Seen":
        """Moves both to a device."""
        return Seen(_moved(self.patches_KBNC, device), _moved(self.images_PCHW, device))


@dataclass(slots=True)
class GlammBatch:
    """A micro-batch, of whatever kind: an image without boxes or masks simply has none of them."""

    clip_pixels_BCHW: Tensor  # normalised, for the global image encoder; without pixels where it is not asked
    sam_pixels_PCHW: Tensor  # normalised and padded right and below, for the grounding image encoder; the same
    seen: Seen | None  # None: the encoders are asked
    sam_sizes_B2: Tensor  # height and width of the image inside the padded square; stays on the CPU
    ids_BL: Tensor
    labels_BL: Tensor  # the id itself where the assistant speaks, else IGNORED
    attention_BL: Tensor  # bool; False = padding, on the right, where no token looks
    predicting_T: Tensor  # places, in B x L, of the tokens before those that the assistant says
    position_BL: Tensor | None  # of each token in its own conversation; None where no sequence holds two
    is_image_BL: Tensor  # bool; places of the image tokens
    is_box_BL: Tensor  # bool; places of <bbox>, as many as there are boxes
    boxes_R4: Tensor  # xyxy in units of the image (0..1), in the order of their places
    box_image_R: Tensor  # which image a box lies in
    seg_sequence_N: Tensor  # the sequence in which each [SEG] stands that has a mask, in the order of the masks
    seg_place_N: Tensor  # position of the token before it
    seg_image_N: Tensor  # which of the P images it points into
    seg_seed_N: Tensor  # of the points at which its mask is compared, where it is not compared everywhere
    masks: list[Tensor]  # per image: M x H x W, 0 or 1 at the image's own size; 0..1 where they were made smaller

    def to(self, device: str | torch.device) -> "GlammBatch":
        """Moves every tensor to a device but the sizes, which shape what is computed and are read on the CPU."""
        apart = {"masks", "position_BL", "seen", "sam_sizes_B2"}
        moved = {name: _moved(getattr(self, name), device) for name in self.__slots__ if name not in apart}
        return GlammBatch(
            **moved,
            sam_sizes_B2=self.sam_sizes_B2,
            position_BL=None if self.position_BL is None else _moved(self.position_BL, device),
            seen=None if self.seen is None else self.seen.to(device),
            masks=[_moved(mask, device) for mask in self.masks],
        )


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
        return WordsBatch(**{name: _moved(getattr(self, name), device) for name in self.__slots__})


def _moved(tensor: Tensor, device: str | torch.device) -> Tensor:
    """Moves a tensor without waiting for what a GPU is still at: it copies from pinned memory, which torch keeps."""
    return tensor.to(device, non_blocking=True)
