"""Chooses points of masks, most of them where a guess is least sure, and reads masks there.

PointRend (arXiv 1912.08193, section 3.1), as Mask2Former trains with it (arXiv 2112.01527, section 4.1). Chance comes
from a seed for each mask and from nothing else: a mask is compared at the same points on any device, among any others,
on any rank.

Legend: N masks, K points, H W pixels. Points are xy in units of what they lie in (0..1), pixel centres at half pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional

from stages.point_rule import PointRule

_LOW = 0xFFFFFFFF
_MIX = 0x45D9F3B  # small enough that a product with 32 bits stays within 63
_BITS = 24  # as many as a float32 holds


@torch.no_grad()
def unsure_points(
    logits_NHW: Tensor, seeds_N: Tensor, rule: PointRule, *, extent_xy: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """Chooses points where logits are nearest to 0, and some anywhere: N x `rule.count` x 2, without a graph.

    `extent_xy` is the share of the logits' width and height, from the top left, that the points' image takes.
    """
    candidates_NK2 = even_points(seeds_N, rule.drawn)
    others_NK2 = even_points(seeds_N, rule.count - rule.unsure, skip=rule.drawn)
    if not rule.unsure:
        return others_NK2
    doubt_NK = -read_points(logits_NHW, candidates_NK2, extent_xy=extent_xy).abs()
    chosen_NK1 = doubt_NK.topk(rule.unsure, dim=1, sorted=False).indices[..., None]
    return torch.cat([candidates_NK2.gather(1, chosen_NK1.expand(-1, -1, 2)), others_NK2], dim=1)


def even_points(seeds_N: Tensor, count: int, *, skip: int = 0) -> Tensor:
    """Draws points evenly, N x `count` x 2: each is a function of a seed (int64) and of its number, from `skip` on."""
    numbers_K2 = torch.arange(2 * skip, 2 * (skip + count), device=seeds_N.device).view(count, 2)
    streams_N = _mixed(_mixed(seeds_N & _LOW) ^ ((seeds_N >> 32) & _LOW))
    drawn_NK2 = _mixed((streams_N[:, None, None] + _mixed(numbers_K2)) & _LOW)
    points_NK2: Tensor = (drawn_NK2 >> (32 - _BITS)).float() / 2**_BITS
    return points_NK2


def read_points(maps_NHW: Tensor, points_NK2: Tensor, *, extent_xy: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Reads masks or logits at points, bilinearly: N x K, float32; beyond the border lies the border's value.

    Mask2Former's own reading mixes zeros in within half a pixel of the border, which no enlarged mask does.
    """
    across, down = extent_xy
    grid_NK12 = torch.stack([points_NK2[..., 0] * (2 * across) - 1, points_NK2[..., 1] * (2 * down) - 1], dim=-1)
    read_N1K1 = functional.grid_sample(
        maps_NHW[:, None].float(), grid_NK12[:, :, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return read_N1K1[:, 0, :, 0]


def _mixed(numbers: Tensor) -> Tensor:
    """Stirs 32 bits, held in int64, so that neighbours have nothing in common."""
    for _ in range(2):
        numbers = (((numbers >> 16) ^ numbers) * _MIX) & _LOW
    return (numbers >> 16) ^ numbers
