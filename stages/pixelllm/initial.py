"""How the fresh weights of a PixelLLM are spread."""

import math
import re
from collections.abc import Collection

import torch
from torch import Tensor, nn

from orchestrator.training.optim import whole_shape
from orchestrator.training.weights import fill
from stages.fresh import draw_fresh

# Names and the spread of their values, the first that fits; a negative one is that part of 1 / sqrt(inputs).
_SPREADS = tuple(
    (re.compile(name), std)
    for name, std in (
        (r".*\.rel_pos_[hw]", 0.0),
        (r".*class_embedding", 0.02),
        (r".*lora_B.*", 0.0),  # an adapter begins by changing nothing
        (r"extractor\.tokens_KW", 1.0),
        (r"extractor\.ways_KWT", -1.0),  # one map for each token: its inputs are the second of three sizes
        # attention that begins sharp lets each learnt token look at a place of its own, and finds what matters sooner
        (r"extractor\.transformer\..*\.[qk]_proj\.weight", -2.0),
        (r"masks\.adapter\.tokens_2C", 1.0),
        (r"masks\.adapter\.gate_1", 0.0),  # closed: SAM's decoder begins with what it knows
        (r"masks\.decoder\.(?:iou_token|mask_tokens)\.weight", 1.0),  # told apart from the start
        (r"location\.last\.weight", 0.01),  # a fresh head says the middle of the image
        (r"language\..*\.shared\.weight", 1.0),  # T5's embeddings are as large as what norms give
        (r"language\..*lm_head.*\.weight", 0.05),  # a tiny vocabulary grows out of 0.02 slowly
        (r"language\..*\.q(?:\.base_layer)?\.weight", -0.25),  # T5 does not scale scores: its queries begin small
    )
)


_TABLES = re.compile(r"semantic\.embeddings\.position_embedding\.weight|localization\.vision_encoder\.pos_embed")


def draw_weights(model: nn.Module, seed: int, *, keep: Collection[str] = ()) -> None:
    """Fills every weight that is not to be kept, SAM's random frequencies too; each rank writes what it holds.

    Tables of positions begin as waves, as large as what patches give: SAM's transformer sees places in its keys only,
    so that values must know where they are, and from waves a place can be read off by a linear map.
    """
    draw_fresh(model, seed, spread=_spread, keep=keep, buffers=True)
    for name, parameter in model.named_parameters():
        if _TABLES.fullmatch(name) and name not in keep:
            fill(parameter, waves(whole_shape(parameter)))


def waves(shape: torch.Size) -> Tensor:
    """Returns a table of the positions of a square: 1 x H x W x C, or H x W rows of C after one of zeros for a class.

    Sines and cosines of x and of y, of half a wave to H / 2 waves across the square; 0.5 on average.
    """
    side, channels = (shape[1], shape[3]) if len(shape) == 4 else (math.isqrt(shape[0] - 1), shape[1])
    count = -(-channels // 4)
    places = (torch.arange(side) + 0.5) / side
    angles_SF = places[:, None] * math.pi * side ** (torch.arange(count) / max(1, count - 1))
    one_S2F = torch.cat([angles_SF.sin(), angles_SF.cos()], dim=1)
    x_SS2F, y_SS2F = one_S2F[None].expand(side, -1, -1), one_S2F[:, None].expand(-1, side, -1)
    table_SSC = torch.cat([x_SS2F, y_SS2F], dim=-1)[..., :channels] / math.sqrt(2)
    if len(shape) == 4:
        return table_SSC[None]
    return torch.cat([torch.zeros(1, channels), table_SSC.flatten(0, 1)])


def _spread(path: str, _module: nn.Module, leaf: str, shape: torch.Size) -> float | None:
    name = f"{path}.{leaf}"
    std = next((std for form, std in _SPREADS if form.fullmatch(name)), None)
    return -std * float(shape[1]) ** -0.5 if std is not None and std < 0 else std
