"""Proposals: boxes of whatever can be described, found as peaks of a map of middles (CenterNet, class-agnostic).

Published are a pyramid on the fused map, CenterNet2's heads and cascaded heads on the regions that those propose. Here
the pyramid and the first heads do it alone: what a box holds, the language model says.

Legend: B images, C channels, P places of all levels together, G true boxes of all images, H W cells of a level.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.boxes import box_ious
from stages.pixelllm.config import DetectorConfig

SCALES = (4.0, 2.0, 1.0, 0.5)  # of the levels, against the map
SMALLEST, LARGEST = 4, 10  # longer sides that a level is responsible for, in its strides; the outer ones for all beyond
MIDDLE_CELLS = 1  # around a middle whose boxes learn too
# CenterNet2's: a box may be moved until it overlaps the true one by 0.8, and a peak is at least so wide (px)
_TOLERANCE, _LEAST_RADIUS_PX = (1 - 0.8) / (1 + 0.8), 4.0
_PRIOR = -4.6  # logit of a hundredth: nearly no place is a middle
_ALPHA, _GAMMA, _BETA = 0.25, 2.0, 4.0


@dataclass(slots=True)
class Proposed:
    """What every place of every level says."""

    heat_BP: Tensor  # logits: is this the middle of something
    ltrb_BP4: Tensor  # distances to the four sides, px of the canvas
    places_P2: Tensor  # x and y, px of the canvas
    strides_P: Tensor  # px between neighbours

    @classmethod
    def read(cls, said: Mapping[str, Tensor]) -> "Proposed | None":
        """Takes it out of what a model returns; None where the model proposes nothing."""
        return cls(**{name: said[name] for name in cls.__slots__}) if "heat_BP" in said else None


class Detector(nn.Module):
    """A pyramid, and heads that all of its levels share."""

    def __init__(self, config: DetectorConfig, map_channels: int, *, canvas_px: int) -> None:
        """Builds it with fresh weights."""
        super().__init__()
        self.config, self.canvas = config, canvas_px
        channels = config.channels
        self.levels = nn.ModuleList([_level(scale, map_channels, channels) for scale in SCALES])
        self.heat_tower, self.box_tower = (_tower(channels, config.layers) for _ in range(2))
        self.heat, self.box = nn.Conv2d(channels, 1, 3, padding=1), nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, map_BCHW: Tensor) -> dict[str, Tensor]:
        """Looks for middles at every level; returns the fields of Proposed."""
        parts = [self._propose(level(map_BCHW)) for level in self.levels]
        heat_BP, ltrb_BP4 = (torch.cat([part[at] for part in parts], dim=1) for at in range(2))
        places_P2, strides_P = (torch.cat([part[at] for part in parts]) for at in range(2, 4))
        return {"heat_BP": heat_BP, "ltrb_BP4": ltrb_BP4, "places_P2": places_P2, "strides_P": strides_P}

    def boxes(self, proposed: Proposed, inside_B2: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns for each image boxes (xyxy, px of the canvas, cut to the image) and scores, the surest first."""
        boxes_BP4 = torch.cat(
            [proposed.places_P2 - proposed.ltrb_BP4[..., :2], proposed.places_P2 + proposed.ltrb_BP4[..., 2:]], -1
        )
        boxes_BP4 = torch.minimum(boxes_BP4.clamp(min=0), inside_B2.repeat(1, 2)[:, None])
        scores_BP = proposed.heat_BP.float().sigmoid()
        return [
            self._chosen(boxes_P4.float().cpu().numpy(), scores_P.cpu().numpy())
            for boxes_P4, scores_P in zip(boxes_BP4, scores_BP, strict=True)
        ]

    def _propose(self, level_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        height, width = level_BCHW.shape[-2:]
        stride = self.canvas / height
        rows, columns = ((torch.arange(n, device=level_BCHW.device) + 0.5) * stride for n in (height, width))
        places_P2 = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).flatten(0, 1)
        heat_BP = self.heat(self.heat_tower(level_BCHW)).flatten(1) + _PRIOR
        # distances are learnt in strides, so that levels can share a head
        ltrb_BP4 = functional.softplus(self.box(self.box_tower(level_BCHW)).flatten(2).transpose(1, 2)) * stride
        return heat_BP, ltrb_BP4, places_P2, places_P2.new_full((len(places_P2),), stride)

    def _chosen(self, boxes_P4: np.ndarray, scores_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Drops what is unsure, empty, or overlaps something surer."""
        sides_P2 = boxes_P4[:, 2:] - boxes_P4[:, :2]
        order = [at for at in np.argsort(-scores_P, kind="stable") if scores_P[at] >= self.config.score]
        order = [at for at in order if (sides_P2[at] >= 1).all()][: 10 * self.config.most]
        ious = box_ious(boxes_P4[order].tolist(), boxes_P4[order].tolist())
        kept: list[int] = []
        for number in range(len(order)):
            if len(kept) < self.config.most and not (ious[number, kept] > self.config.overlap).any():
                kept.append(number)
        chosen = [order[number] for number in kept]
        return boxes_P4[chosen], scores_P[chosen]


def proposal_loss(proposed: Proposed, boxes_G4: Tensor, box_image_G: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the loss of middles (focal, by true peaks) and of sides (1 - GIoU); zero, with a graph, without boxes."""
    heat, sides = proposed.heat_BP.sum() * 0, proposed.ltrb_BP4.sum() * 0
    peaks = torch.zeros_like(proposed.strides_P[0])
    for image in range(len(proposed.heat_BP)):
        mine_G4 = boxes_G4[box_image_G == image]
        truth_P, is_peak_P, box_P4, weight_P = _targets(proposed, mine_G4)
        logits_P = proposed.heat_BP[image].float()
        chance_P = logits_P.sigmoid()
        right_P = -_ALPHA * (1 - chance_P) ** _GAMMA * functional.logsigmoid(logits_P)
        wrong_P = -(1 - _ALPHA) * (1 - truth_P) ** _BETA * chance_P**_GAMMA * functional.logsigmoid(-logits_P)
        heat = heat + torch.where(is_peak_P, right_P, wrong_P).sum()
        apart_P = 1 - _giou(_corners(proposed.places_P2, proposed.ltrb_BP4[image].float()), box_P4)
        sides = sides + (apart_P * weight_P).sum() / weight_P.sum().clamp(min=1e-6)
        peaks = peaks + is_peak_P.sum()
    return heat / peaks.clamp(min=1), sides / len(proposed.heat_BP)


def _targets(proposed: Proposed, boxes_G4: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns for each place how near it is to a middle (0..1), if it is one, the box it belongs to, and its weight."""
    places_P2, strides_P = proposed.places_P2, proposed.strides_P
    if not len(boxes_G4):
        nothing = torch.zeros_like(strides_P)
        return nothing, nothing.bool(), nothing[:, None].expand(-1, 4), nothing
    size_G2 = boxes_G4[:, 2:] - boxes_G4[:, :2]
    middle_G2 = (boxes_G4[:, :2] + boxes_G4[:, 2:]) / 2
    off_PG2 = (places_P2[:, None] - middle_G2).abs() / strides_P[:, None, None]
    longest_G = size_G2.amax(-1)
    is_level_PG = (longest_G >= SMALLEST * strides_P[:, None]) | (strides_P == strides_P.min())[:, None]
    is_level_PG &= (longest_G < LARGEST * strides_P[:, None]) | (strides_P == strides_P.max())[:, None]
    is_peak_PG = (off_PG2 <= 0.5).all(-1) & is_level_PG
    radius_G = (2 * _TOLERANCE**2 * size_G2.prod(-1)).clamp(min=_LEAST_RADIUS_PX**2)
    away_PG = (places_P2[:, None] - middle_G2).square().sum(-1) / radius_G
    truth_P = torch.where(is_peak_PG, 0.0, away_PG).neg().exp().amax(-1)
    near_PG = (off_PG2 <= 0.5 + MIDDLE_CELLS).all(-1) & is_level_PG
    inside_PG = ((places_P2[:, None] > boxes_G4[:, :2]) & (places_P2[:, None] < boxes_G4[:, 2:])).all(-1)
    owner_P = torch.where(near_PG & inside_PG, away_PG, torch.inf).argmin(-1)
    weight_P = truth_P * (near_PG & inside_PG).any(-1)
    return truth_P, is_peak_PG.any(-1), boxes_G4[owner_P], weight_P


def _corners(places_P2: Tensor, ltrb_P4: Tensor) -> Tensor:
    return torch.cat([places_P2 - ltrb_P4[:, :2], places_P2 + ltrb_P4[:, 2:]], dim=-1)


def _giou(first_P4: Tensor, second_P4: Tensor) -> Tensor:
    """Returns the generalised IoU of boxes in pairs (arXiv 1902.09630)."""
    shared = (
        torch.minimum(first_P4[:, 2:], second_P4[:, 2:]) - torch.maximum(first_P4[:, :2], second_P4[:, :2])
    ).clamp(min=0)
    around = torch.maximum(first_P4[:, 2:], second_P4[:, 2:]) - torch.minimum(first_P4[:, :2], second_P4[:, :2])
    areas = [(box[:, 2:] - box[:, :2]).prod(-1) for box in (first_P4, second_P4)]
    together = (areas[0] + areas[1] - shared.prod(-1)).clamp(min=1e-6)
    hull = around.prod(-1).clamp(min=1e-6)
    return shared.prod(-1) / together - (hull - together) / hull


def _level(scale: float, map_channels: int, channels: int) -> nn.Sequential:
    """Builds one level of a simple pyramid (ViTDet's): the map enlarged or halved, then smoothed."""
    parts: list[nn.Module] = []
    width = map_channels
    while scale > 1:
        parts += [nn.ConvTranspose2d(width, max(channels, width // 2), 2, stride=2), nn.GELU()]
        width, scale = max(channels, width // 2), scale / 2
    if scale < 1:
        parts.append(nn.MaxPool2d(2))
    parts += [nn.Conv2d(width, channels, 1), nn.GroupNorm(1, channels)]
    return nn.Sequential(*parts, nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels))


def _tower(channels: int, layers: int) -> nn.Sequential:
    blocks = [
        part
        for _ in range(layers)
        for part in (nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.ReLU())
    ]
    return nn.Sequential(*blocks)
