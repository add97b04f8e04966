"""What one step of CLOC reads, as named tensors.

Legend: B images, C channels, H W pixels, L tokens of a text, M places for regions of an image.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(slots=True)
class Texts:
    """Texts as ids, padded on the right, where a causal model does not look."""

    ids: Tensor  # ... x L
    last: Tensor  # ...; the place of each text's end

    def to(self, device: str | torch.device) -> "Texts":
        """Moves both to a device."""
        return Texts(self.ids.to(device), self.last.to(device))

    def part(self, rows: slice) -> "Texts":
        """Returns the texts of some rows."""
        return Texts(self.ids[rows], self.last[rows])


@dataclass(slots=True)
class ClocBatch:
    """Images with a caption each, and as many places for regions each, so that ranks never differ in what they run."""

    pixels_BCHW: Tensor  # normalised, padded right and below to a square
    captions: Texts  # B
    captioned_B: Tensor  # bool; False: the image has no caption, and another text stands in its place
    boxes_BM4: Tensor  # xyxy in units of the square (0..1); the whole square where there is no region
    phrases: Texts  # B x M
    real_BM: Tensor  # bool; False: a place without a region

    def to(self, device: str | torch.device) -> "ClocBatch":
        """Moves every tensor to a device."""
        return ClocBatch(**{one.name: getattr(self, one.name).to(device) for one in fields(self)})

    def parts(self, size: int | None) -> "list[ClocBatch]":
        """Cuts the batch into parts of so many images; None leaves it whole."""
        step = size or len(self.pixels_BCHW)
        return [self._part(slice(start, start + step)) for start in range(0, len(self.pixels_BCHW), step)]

    def _part(self, rows: slice) -> "ClocBatch":
        return ClocBatch(
            pixels_BCHW=self.pixels_BCHW[rows],
            captions=self.captions.part(rows),
            captioned_B=self.captioned_B[rows],
            boxes_BM4=self.boxes_BM4[rows],
            phrases=self.phrases.part(rows),
            real_BM=self.real_BM[rows],
        )
