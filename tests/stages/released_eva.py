"""Files as EVA-02's publishers write them: every name and shape of theirs, of any size, without their content."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stages.sizes import ViTSizes


def released(
    sizes: ViTSizes, *, grid: int, inner_norm: bool = True, head: int = 8, prefix: str = "visual."
) -> dict[str, Tensor]:
    """Draws a tower in EVA-CLIP's layout: its positions are of `grid` x `grid` patches; random, from one seed."""
    generator = torch.Generator().manual_seed(5)
    shapes = {
        **_around(sizes, grid, head),
        **{name: shape for number in range(sizes.layers) for name, shape in _layer(sizes, number, inner_norm).items()},
    }
    tensors = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    angles = {f"{place}rope.freqs_{part}": torch.zeros(grid**2, sizes.hidden_size // sizes.heads)
              for place in ("", "blocks.0.attn.") for part in ("cos", "sin")}  # fmt: skip
    return {prefix + name: tensor for name, tensor in {**tensors, **angles}.items()}


def _around(sizes: ViTSizes, grid: int, head: int) -> Mapping[str, tuple[int, ...]]:
    width = sizes.hidden_size
    return {
        "cls_token": (1, 1, width), "pos_embed": (1, 1 + grid**2, width),
        "patch_embed.proj.weight": (width, 3, sizes.patch_size, sizes.patch_size), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,), "head.weight": (head, width), "head.bias": (head,),
    }  # fmt: skip


def _layer(sizes: ViTSizes, number: int, inner_norm: bool) -> dict[str, tuple[int, ...]]:  # noqa: FBT001 - of a table
    width, inner, at = sizes.hidden_size, sizes.mlp_size, f"blocks.{number}."
    norms: dict[str, Any] = {"norm1": width, "norm2": width, "mlp.ffn_ln": inner}
    norms |= {"attn.inner_attn_ln": width} if inner_norm else {}
    linear = {"attn.proj": (width, width), "mlp.w1": (inner, width), "mlp.w2": (inner, width), "mlp.w3": (width, inner)}
    return {
        **{f"{at}attn.{one}_proj.weight": (width, width) for one in "qkv"},
        **{f"{at}attn.{one}_bias": (width,) for one in "qv"},
        **{f"{at}{norm}.{end}": (size,) for norm, size in norms.items() for end in ("weight", "bias")},
        **{f"{at}{name}.weight": shape for name, shape in linear.items()},
        **{f"{at}{name}.bias": shape[:1] for name, shape in linear.items()},
    }
