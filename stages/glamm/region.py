"""Boxes to language tokens: cut out of several levels of image features by RoIAlign, or asked of CLOC's Prompter.

Legend: B images, R boxes, C channels, H W grid cells, S cells of a region's side, N patches, D language width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.glamm.config import RegionConfig
from stages.promptable import PrompterSizes
from stages.prompter import Prompter
from stages.roi import as_map, roi_align


class PromptedRegions(nn.Module):
    """Turns each box into one language token: the embedding that CLOC's Prompter answers with, projected.

    So CLOC serves a Ferret, in the place of its sampler (arXiv 2410.02746, section 4); how the embedding gets into the
    language model there is not said: a linear map, here.
    """

    def __init__(self, sizes: PrompterSizes, *, vision_size: int, language_size: int) -> None:
        """Builds the Prompter of an image encoder, and the map."""
        super().__init__()
        self.prompter = Prompter(vision_size, sizes)
        self.project = nn.Linear(sizes.embedding_size, language_size)

    def forward(self, levels_BND: Sequence[Tensor], boxes_R4: Tensor, box_image_R: Tensor) -> Tensor:
        """Returns R x D; the one level is the image encoder's last layer."""
        (tokens_BND,) = levels_BND
        embedded_RC = self.prompter.by_boxes(tokens_BND[box_image_R], boxes_R4[:, None])[:, 0]
        projected: Tensor = self.project(embedded_RC.to(tokens_BND.dtype))
        return projected


class RegionEncoder(nn.Module):
    """Turns each box into one language token: levels fused, cut out and projected, as GPT4RoI does."""

    def __init__(self, config: RegionConfig, *, vision_size: int, language_size: int, roi_scale: float = 1.0) -> None:
        """Builds one input convolution per level; the exchange convolutions are shared by all levels.

        `roi_scale` shrinks the boxes on the map, 1.0 unless published weights want it otherwise.
        """
        super().__init__()
        self.config, self.roi_scale = config, roi_scale
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

    def forward(self, levels_BND: Sequence[Tensor], boxes_R4: Tensor, box_image_R: Tensor) -> Tensor:
        """Returns R x D."""
        maps = [
            enter(_with_coordinates(as_map(level, factor)))
            for enter, level, factor in zip(self.inputs, levels_BND, self.config.upsample, strict=True)
        ]
        for exchange in self.exchanges:
            maps = [exchange(mixed) for mixed in _mix_neighbours(maps)]
        size, sampling = self.config.roi_size, self.config.sampling
        regions = [
            leave(roi_align(level, boxes_R4 * self.roi_scale, box_image_R, size=size, sampling=sampling))
            for leave, level in zip(self.outputs, maps, strict=True)
        ]
        fused_RC = self.flatten(torch.relu(torch.stack(regions).sum(0)).flatten(1))
        projected: Tensor = self.project(fused_RC + self.position(boxes_R4.to(fused_RC.dtype)))
        return projected


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
