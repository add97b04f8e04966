"""Boxes to language tokens: several levels of image features, fused, cut out by RoIAlign, projected.

Legend: B images, R boxes, C channels, H W grid cells, S cells of a region's side, N patches, D language width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.glamm.config import RegionConfig


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
    maps_BDHW = _as_map(tokens_BND, 1)
    grid = (points_RK2 * 2 - 1)[:, :, None].to(maps_BDHW.dtype)
    read = functional.grid_sample(maps_BDHW[image_R], grid, align_corners=False, padding_mode="border")
    return read[..., 0].transpose(1, 2)


class RegionEncoder(nn.Module):
    """Turns each box into one language token."""

    def __init__(self, config: RegionConfig, *, vision_size: int, language_size: int) -> None:
        """Builds one input convolution per level; the exchange convolutions are shared by all levels."""
        super().__init__()
        self.config = config
        width, levels = config.channels, len(config.layers)
        self.inputs = nn.ModuleList(nn.Conv2d(vision_size + 2, width, 1) for _ in range(levels))
        self.exchanges = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(config.groups, width), nn.ReLU())
            for _ in range(config.rounds)
        )
        self.outputs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(levels))
        self.flatten = nn.Linear(width * config.roi_size**2, width)
        self.position = nn.Sequential(
            nn.Linear(4, config.position_size),
            nn.ReLU(),
            nn.LayerNorm(config.position_size),
            nn.Linear(config.position_size, width),
            nn.ReLU(),
            nn.LayerNorm(width),
        )
        self.project = nn.Linear(width, language_size)

    def forward(self, levels_BND: Sequence[Tensor], boxes_R4: Tensor, box_image_R: Tensor, roi_scale: float) -> Tensor:
        """Returns R x D. `roi_scale` shrinks the boxes on the map, 1.0 unless published weights want it otherwise."""
        maps = [
            enter(_with_coordinates(_as_map(level, factor)))
            for enter, level, factor in zip(self.inputs, levels_BND, self.config.upsample, strict=True)
        ]
        for exchange in self.exchanges:
            maps = [exchange(mixed) for mixed in _mix_neighbours(maps)]
        size, sampling = self.config.roi_size, self.config.sampling
        regions = [
            leave(roi_align(level, boxes_R4 * roi_scale, box_image_R, size=size, sampling=sampling))
            for leave, level in zip(self.outputs, maps, strict=True)
        ]
        fused_RC = self.flatten(torch.relu(torch.stack(regions).sum(0)).flatten(1))
        projected: Tensor = self.project(fused_RC + self.position(boxes_R4.to(fused_RC.dtype)))
        return projected


def _as_map(level_BND: Tensor, factor: int) -> Tensor:
    side = round(level_BND.shape[1] ** 0.5)
    level_BCHW = level_BND.transpose(1, 2).reshape(level_BND.shape[0], -1, side, side)
    if factor == 1:
        return level_BCHW
    # in float32: bilinear weights lose too much in bfloat16
    larger = functional.interpolate(level_BCHW.float(), scale_factor=factor, mode="bilinear", align_corners=True)
    return larger.to(level_BND.dtype)


def _with_coordinates(map_BCHW: Tensor) -> Tensor:
    batch, _, height, width = map_BCHW.shape
    ys = torch.linspace(-1, 1, height, device=map_BCHW.device, dtype=map_BCHW.dtype)
    xs = torch.linspace(-1, 1, width, device=map_BCHW.device, dtype=map_BCHW.dtype)
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy")).expand(batch, 2, height, width)
    return torch.cat([map_BCHW, grid], dim=1)


def _mix_neighbours(maps: list[Tensor]) -> list[Tensor]:
    """Gives each level half of its own channels, a quarter of the finer and a quarter of the coarser level."""
    quarter = maps[0].shape[1] // 4
    mixed = []
    for index, own in enumerate(maps):
        finer, coarser = maps[max(index - 1, 0)], maps[min(index + 1, len(maps) - 1)]
        parts = [own[:, : 2 * quarter]]
        for neighbour, start in ((finer, 2 * quarter), (coarser, 3 * quarter)):
            part = neighbour[:, start : start + quarter]
            if part.shape[-2:] != own.shape[-2:]:
                part = functional.interpolate(part, size=own.shape[-2:], mode="bilinear", align_corners=True)
            parts.append(part)
        mixed.append(torch.cat(parts, dim=1))
    return mixed
