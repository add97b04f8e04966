"""What one step of PixCLIP reads, as named tensors.

Legend: B pairs of an image through a mask and a text, S side of what the image tower reads, L tokens, E numbers of a
text that a language model has embedded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class Texts:
    """Texts in one of two forms: tokens for the model's own text model, or embeddings of a language model."""

    ids_BL: Tensor | None = None
    attention_BL: Tensor | None = None  # bool; False = padding, on the right
    embeddings_BE: Tensor | None = None

    def to(self, device: str | torch.device) -> "Texts":
        """Moves them to a device."""
        return Texts(**{name: _moved(getattr(self, name), device) for name in self.__slots__})


@dataclass(slots=True)
class PixClipBatch:
    """A micro-batch of pairs."""

    whole_B4SS: Tensor  # images padded to a square, with their masks, normalised
    crops_B4SS: Tensor | None  # windows around the regions; None where no branch looks at them
    boxes_B4: Tensor  # xyxy of the regions, in units of the square image (0..1)
    texts: Texts

    def to(self, device: str | torch.device) -> "PixClipBatch":
        """Moves everything to a device."""
        return PixClipBatch(
            whole_B4SS=self.whole_B4SS.to(device),
            crops_B4SS=_moved(self.crops_B4SS, device),
            boxes_B4=self.boxes_B4.to(device),
            texts=self.texts.to(device),
        )


def _moved(tensor: Tensor | None, device: str | torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
