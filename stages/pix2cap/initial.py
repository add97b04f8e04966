"""How the weights of a Pix2Cap begin where no file fills them."""

import math
from collections.abc import Collection

import torch
from torch import nn
from transformers.models.mask2former import modeling_mask2former as mask2former

from orchestrator.training.weights import fill
from stages.fresh import draw_fresh

QUERY_STD = 1.0  # of queries, their positions and the marks of levels, as Mask2Former begins
WORD_STD = 0.02  # of words, which are the output layer too
OFFSETS = "sampling_offsets"


def draw_weights(model: nn.Module, seed: int, *, keep: Collection[str] = ()) -> None:
    """Fills every weight that is not to be kept; each rank writes what it holds of it."""
    draw_fresh(model, seed, spread=_spread, keep=keep)
    for path, module in model.named_modules():
        if isinstance(module, mask2former.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
            name = f"{path}.{OFFSETS}.bias"
            if name not in keep:
                fill(module.sampling_offsets.bias, _star(module.n_heads, module.n_levels, module.n_points))


def _spread(path: str, module: nn.Module, leaf: str, _shape: torch.Size) -> float | None:
    if path.startswith("captioner") and isinstance(module, nn.Embedding):
        return WORD_STD
    if isinstance(module, nn.Embedding) or leaf == "level_embed":
        return QUERY_STD
    if path.endswith((OFFSETS, "attention_weights")) and leaf == "weight":
        return 0.0  # deformable attention begins by looking around evenly
    if leaf == "relative_position_bias_table":
        return WORD_STD
    return None


def _star(heads: int, levels: int, points: int) -> torch.Tensor:
    """Lets each head look in a direction of its own, each point a step farther."""
    angles = torch.arange(heads) * (2 * math.pi / heads)
    ways = torch.stack([angles.cos(), angles.sin()], dim=-1)
    ways = ways / ways.abs().max(dim=-1, keepdim=True).values
    steps = torch.arange(1, points + 1)
    return (ways[:, None, None] * steps[None, None, :, None]).expand(heads, levels, points, 2).flatten()
