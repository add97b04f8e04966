"""How the fresh weights of a PixelLLM are spread."""

import re
from collections.abc import Collection

import torch
from torch import nn

from stages.fresh import draw_fresh

# Names and the spread of their values, the first that fits; a negative one is that part of 1 / sqrt(inputs).
_SPREADS = tuple(
    (re.compile(name), std)
    for name, std in (
        (r".*\.rel_pos_[hw]", 0.0),
        (r".*class_embedding", 0.02),
        # as large as what patches give: SAM's decoder sees places in its keys only, so values must know where they are
        (r".*(?:pos_embed|position_embedding\.weight)", 0.5),
        (r".*lora_B.*", 0.0),  # an adapter begins by changing nothing
        (r"extractor\.tokens_KW", 1.0),
        (r"extractor\.ways_KWT", -1.0),  # one map for each token: its inputs are the second of three sizes
        # attention that begins sharp lets each learnt token look at a place of its own, and finds what matters sooner
        (r"extractor\.transformer\..*\.[qk]_proj\.weight", -2.0),
        (r"location\.last\.weight", 0.01),  # a fresh head says the middle of the image
        (r"language\..*\.shared\.weight", 1.0),  # T5's embeddings are as large as what norms give
        (r"language\..*lm_head.*\.weight", 0.05),  # a tiny vocabulary grows out of 0.02 slowly
        (r"language\..*\.q(?:\.base_layer)?\.weight", -0.25),  # T5 does not scale scores: its queries begin small
    )
)


def draw_weights(model: nn.Module, seed: int, *, keep: Collection[str] = ()) -> None:
    """Fills every weight that is not to be kept, SAM's random frequencies too; each rank writes what it holds."""
    draw_fresh(model, seed, spread=_spread, keep=keep, buffers=True)


def _spread(path: str, _module: nn.Module, leaf: str, shape: torch.Size) -> float | None:
    name = f"{path}.{leaf}"
    std = next((std for form, std in _SPREADS if form.fullmatch(name)), None)
    return -std * float(shape[1]) ** -0.5 if std is not None and std < 0 else std
