"""How boxes and points become vectors: SAM's encodings, learnt and by random frequencies, and plain sinusoids.

Legend: N prompts, K corners or points of a prompt, C channels, F frequencies, H W cells of an image's grid.
All places are in units of the square that an image encoder reads (0..1), x before y, origin top left.
"""

import math

import torch
from torch import Tensor, nn

OUTSIDE, INSIDE, TOP_LEFT, BOTTOM_RIGHT = range(4)  # what SAM's four learnt vectors mean
PADDING = -1  # the label of a point that is none


def sinusoidal_corners(boxes_N4: Tensor, size: int, *, temperature: float = 10_000.0) -> Tensor:
    """Encodes the two corners of boxes, top left first: N x 2 x `size`, half of it for x and half for y.

    Each coordinate, times 2 pi, gives sines and cosines of geometric frequencies from 1 down to 1 / temperature, as
    DETR does it. CLOC names sinusoids without their scale, so the temperature is the caller's to choose.
    """
    assert size % 4 == 0, "a sine and a cosine of x and of y"  # noqa: S101 - configs have checked it
    count = size // 4
    exponent_F = torch.arange(count, device=boxes_N4.device, dtype=torch.float32) / count
    angles_N2xF = boxes_N4.float().view(-1, 2, 2, 1) * 2 * math.pi * temperature**-exponent_F
    return torch.cat([angles_N2xF.sin(), angles_N2xF.cos()], dim=-1).flatten(-2).to(boxes_N4.dtype)


class SamPrompts(nn.Module):
    """SAM's prompt encoder for boxes and points (arXiv 2304.02643, appendix A); masks are no prompts here.

    Names below `point_embed`, `not_a_point_embed` and `no_mask_embed` are those of transformers' SamPromptEncoder.
    SAM itself moves corners and points by half a pixel before they come here; whoever calls knows how large one is.
    Every vector is fetched by calling its embedding: under ZeRO-3 only a module's own call gathers its weights.
    """

    def __init__(self, channels: int) -> None:
        """Builds fresh vectors; half of the channels are sines, half cosines."""
        super().__init__()
        self.register_buffer("positional_embedding", torch.randn(2, channels // 2))
        self.point_embed = nn.ModuleList([nn.Embedding(1, channels) for _ in range(4)])
        self.not_a_point_embed = nn.Embedding(1, channels)
        self.no_mask_embed = nn.Embedding(1, channels)

    def forward(self, boxes_N4: Tensor) -> Tensor:
        """Encodes boxes by their corners: N x 2 x C."""
        learnt_2C = torch.stack([self._learnt(TOP_LEFT), self._learnt(BOTTOM_RIGHT)])
        return self.places(boxes_N4.view(-1, 2, 2)).to(learnt_2C.dtype) + learnt_2C

    def points(self, points_NK2: Tensor, labels_NK: Tensor) -> Tensor:
        """Encodes points that lie inside or outside of what is meant: N x K x C; a PADDING point has no place."""
        table_3C = torch.stack([self._learnt(OUTSIDE), self._learnt(INSIDE), self.not_a_point_embed(self._first())[0]])
        places_NKC = self.places(points_NK2) * (labels_NK != PADDING)[..., None]
        return places_NKC.to(table_3C.dtype) + table_3C[labels_NK]  # PADDING counts from the end: the last row

    def grid(self, height: int, width: int) -> Tensor:
        """Encodes the middles of a grid's cells: C x H x W, what is added to the image's own features."""
        rows, columns = self._middles(height), self._middles(width)
        middles_HW2 = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        return self.places(middles_HW2).permute(2, 0, 1)

    def no_mask(self) -> Tensor:
        """Returns what stands for the mask that is not given: a vector of C."""
        vector: Tensor = self.no_mask_embed(self._first())[0]
        return vector

    def places(self, points_2: Tensor) -> Tensor:
        """Encodes places by random frequencies, in float32: (..., 2) to (..., C)."""
        angles = 2 * math.pi * (2 * points_2.float() - 1) @ self.get_buffer("positional_embedding").float()
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def _learnt(self, number: int) -> Tensor:
        vector: Tensor = self.point_embed[number](self._first())[0]
        return vector

    def _first(self) -> Tensor:
        return torch.zeros(1, dtype=torch.long, device=self.get_buffer("positional_embedding").device)

    def _middles(self, count: int) -> Tensor:
        return (torch.arange(count, device=self.get_buffer("positional_embedding").device) + 0.5) / count
