"""Regions of image features: RoIAlign, single points, and grids of tokens laid out as maps.

Legend: B images, R boxes, K points of a box, N tokens, C D channels, H W grid cells, S cells of a region's side.
"""

import torch
from torch import Tensor
from torch.nn import functional


def roi_align(features_BCHW: Tensor, boxes_R4: Tensor, box_image_R: Tensor, *, size: int, sampling: int) -> Tensor:
    """Averages `sampling` x `sampling` bilinear samples in each of `size` x `size` cells of every box: R x C x S x S.

    Boxes are xyxy in units of the map (0..1); pixel centres lie at half cells ("aligned"), samples outside the map
    take the value of its border.
    """
    steps = size * sampling
    offsets = (torch.arange(steps, device=boxes_R4.device, dtype=torch.float32) + 0.5) / steps
    x0, y0, x1, y1 = boxes_R4.float().unbind(-1)
    xs_RS = x0[:, None] + (x1 - x0)[:, None] * offsets
    ys_RS = y0[:, None] + (y1 - y0)[:, None] * offsets
    shape = (len(boxes_R4), steps, steps)
    grid = torch.stack([xs_RS[:, None, :].expand(shape), ys_RS[:, :, None].expand(shape)], dim=-1) * 2 - 1
    samples = functional.grid_sample(
        features_BCHW[box_image_R], grid.to(features_BCHW.dtype), align_corners=False, padding_mode="border"
    )
    return functional.avg_pool2d(samples, sampling)


def at_points(tokens_BND: Tensor, points_RK2: Tensor, image_R: Tensor) -> Tensor:
    """Reads a square grid of image tokens at points (xy, 0..1), bilinearly: R x K x D."""
    maps_BDHW = as_map(tokens_BND)
    grid = (points_RK2 * 2 - 1)[:, :, None].to(maps_BDHW.dtype)
    read = functional.grid_sample(maps_BDHW[image_R], grid, align_corners=False, padding_mode="border")
    return read[..., 0].transpose(1, 2)


def as_map(tokens_BND: Tensor, factor: int = 1) -> Tensor:
    """Lays a square grid of image tokens out as a map B x D x H x W, made `factor` times finer bilinearly."""
    side = round(tokens_BND.shape[1] ** 0.5)
    map_BDHW = tokens_BND.transpose(1, 2).reshape(tokens_BND.shape[0], -1, side, side)
    if factor == 1:
        return map_BDHW
    # in float32: bilinear weights lose too much in bfloat16
    larger = functional.interpolate(map_BDHW.float(), scale_factor=factor, mode="bilinear", align_corners=True)
    return larger.to(tokens_BND.dtype)
