"""What one step of PixelLLM reads, as named tensors.

Legend: B images, N rows (a box as prompt, words as context and a text, about one of the images), M context tokens,
L tokens of a text, S rows whose masks are drawn, G described boxes of all images (for proposals), H W pixels of the
canvas.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100  # target of a token that nobody predicts


@dataclass(slots=True)
class PixelBatch:
    """A micro-batch of one kind of task: a row without words to predict or places to find simply has none."""

    semantic_pixels_BCHW: Tensor  # normalised as CLIP's; padded right and below
    localization_pixels_BCHW: Tensor  # normalised as SAM's
    inside_B2: Tensor  # width and height of each image inside the canvas, px
    image_N: Tensor  # which image a row is about
    prompts_N4: Tensor  # the box that a row speaks of, xyxy in units of the canvas (0..1)
    context_NM: Tensor  # ids; padded on the right
    is_context_NM: Tensor  # bool
    ids_NL: Tensor  # the start token, then the text, without its end
    targets_NL: Tensor  # the token after each, else IGNORED
    corners_NL22: Tensor  # where each token is: top left and bottom right, xy in px of the canvas
    is_located_NL: Tensor  # bool; tokens whose place is known
    last_N: Tensor  # which token of a row is the last one of its text; 0: the start token
    drawn_S: Tensor  # rows whose masks are to be drawn
    masks_SHW: Tensor  # bool; what these should be, in px of the canvas
    boxes_G4: Tensor  # xyxy in px of the canvas: what proposals should find; none where they are not asked for
    box_image_G: Tensor
    proposes: bool  # boxes_G4 are all that the images show: proposals learn from them
    idle: frozenset[str]  # parts of the model that are not run, the same in every batch of a training

    def to(self, device: str | torch.device) -> "PixelBatch":
        """Moves every tensor to a device."""
        moved = {name: getattr(self, name).to(device) for name in self.__slots__ if name not in {"proposes", "idle"}}
        return PixelBatch(**moved, proposes=self.proposes, idle=self.idle)
