"""Fresh weights, as a function of (seed, name): the same on any number of ranks, whole or partitioned by ZeRO-3."""

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from orchestrator.training.optim import whole_shape
from orchestrator.training.weights import fill
from stages.fresh import drawn, fan_in, generator_of

EMBEDDING_STD = 0.02
# of a vector that all words share: LLaMA has no biases, so what queries have in common is learned once for all words
COMMON_STD = 0.1
HEAD_STD = 0.3  # 0.02, as large models begin, takes a tiny one thousands of samples to grow out of
BOX_STD = 2.0  # of the layer that reads four numbers between 0 and 1
ATTENTION_GAIN = 1.5  # of queries and keys: attention that begins sharp finds the one token that matters sooner
POSITION_STD = 0.3
# what a block adds to its residual stream: scaled down, so that the stream does not grow with depth
RESIDUAL_ENDS = ("o_proj", "down_proj", "out_proj", "fc2", "attn.proj", "lin2")


def draw_weights(model: nn.Module, seed: int, *, keep: Collection[str] = ()) -> None:
    """Fills every weight that is not to be kept; each rank writes what it holds of it."""
    for name, parameter, std in _plans(model):
        if name not in keep:
            fill(parameter, _drawn(name, whole_shape(parameter), std, seed))


def _plans(model: nn.Module) -> Iterator[tuple[str, Tensor, float | None]]:
    """Yields every parameter with the spread of its values; None: the values that norms and biases begin with."""
    blocks = {
        part: max(1, sum(name.startswith(prefix) and name.endswith(last) for name, _ in model.named_modules()))
        for part, prefix, last in (
            ("language_model", "language_model.", "down_proj"),
            ("vision_tower", "vision_tower.", "fc2"),
            ("sam", "sam.vision_encoder.", "lin2"),
        )
    }
    # by its first name only: SAM's positions have two, and what is kept under one must not be drawn by the other
    names = {name for name, _ in model.named_parameters()}
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            if name not in names:
                continue
            if leaf != "weight" or len(whole_shape(parameter)) < 2:
                yield name, parameter, _std_of_special(name)
            elif isinstance(module, nn.Embedding):
                yield name, parameter, POSITION_STD if "position_embedding" in path else EMBEDDING_STD
            elif "lora_B" in path:
                yield name, parameter, 0.0  # an adapter begins by changing nothing
            elif path.endswith("lm_head"):
                yield name, parameter, HEAD_STD
            elif path == "region_encoder.position.0":
                yield name, parameter, BOX_STD
            else:
                attends = path.startswith("language_model.") and path.endswith(("q_proj", "k_proj"))
                gain = ATTENTION_GAIN if attends else 1.0
                depth = 2 * blocks.get(path.split(".")[0], 1) if path.endswith(RESIDUAL_ENDS) else 1
                yield name, parameter, gain / math.sqrt(fan_in(module, whole_shape(parameter)) * depth)


def _std_of_special(name: str) -> float | None:
    if name.endswith("class_embedding"):
        return EMBEDDING_STD
    if name.endswith("pos_embed"):
        return POSITION_STD
    if name.endswith("positional_embedding"):
        return 1.0  # SAM's random frequencies
    if name == "region_encoder.position.0.bias":
        return BOX_STD
    return 0.0 if "rel_pos" in name else None


def _drawn(name: str, shape: torch.Size, std: float | None, seed: int) -> Tensor:
    values = drawn(name, shape, std, seed)
    if std is not None and name.endswith("embed_tokens.weight"):
        generator = generator_of(name, seed)
        torch.randn(shape, generator=generator)  # those were the values; what follows them is common
        values += torch.randn(shape[-1], generator=generator) * COMMON_STD
    return values
