"""Fresh weights of a PixCLIP: the mask changes nothing at first, and blocks add little to what passes them."""

import math
from collections.abc import Collection

import torch
from torch import nn

from stages.fresh import draw_fresh, fan_in

VECTOR_STD = 0.02  # of the class token
POSITION_STD = 0.3  # with less, a tiny tower takes long to find out where things are
# what a block adds to its residual stream: scaled down, so that the stream does not grow with depth
RESIDUAL_ENDS = ("o_proj", "down_proj", "out_proj", "fc2", "narrow")
SCALE = "logit_scale"


def draw_weights(model: nn.Module, seed: int, *, keep: Collection[str] = ()) -> None:
    """Fills every weight that is not to be kept; each rank writes what it holds of it."""
    parts = [path.split(".")[0] for path, _ in model.named_modules() if path.endswith(RESIDUAL_ENDS)]

    def spread(path: str, module: nn.Module, leaf: str, shape: torch.Size) -> float | None:
        if path.endswith("patch_embedding.alpha"):
            return 0.0
        if leaf == "class_embedding":
            return VECTOR_STD
        if path.endswith("position_embedding"):
            return POSITION_STD
        if leaf == "weight" and path.endswith(RESIDUAL_ENDS):
            return 1 / math.sqrt(fan_in(module, shape) * parts.count(path.split(".", maxsplit=1)[0]))
        return None

    draw_fresh(model, seed, spread=spread, keep={*keep, SCALE})  # the scale begins where its model is built
