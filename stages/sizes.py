"""Sizes of transformers as recipes say them, in the words of Hugging Face's configs. Imports no torch."""

from typing import Any, Protocol


class Sizes(Protocol):
    """A stack of transformer layers."""

    @property
    def hidden_size(self) -> int:
        """Returns the width."""

    @property
    def layers(self) -> int:
        """Returns how many there are."""

    @property
    def heads(self) -> int:
        """Returns how many share the width in attention."""

    @property
    def mlp_size(self) -> int:
        """Returns how wide they become inside."""


class ViTSizes(Sizes, Protocol):
    """Layers that read square patches of a square image."""

    @property
    def patch_size(self) -> int:
        """Returns the side of a patch in pixels."""


class SamSizes(ViTSizes, Protocol):
    """Layers of which most see windows of patches only."""

    @property
    def window_size(self) -> int:
        """Returns the side of a window in patches."""

    @property
    def global_layers(self) -> tuple[int, ...]:
        """Returns which layers see all patches."""

    @property
    def channels(self) -> int:
        """Returns how many numbers of a patch come out."""


def stack_settings(sizes: Sizes) -> dict[str, Any]:
    """Returns them as CLIP's, BERT's, GIT's and LLaMA's configs have them."""
    return {
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.mlp_size,
    }


def llama_settings(sizes: Sizes, *, positions: int) -> dict[str, Any]:
    """Returns what LlamaConfig needs, less the vocabulary."""
    heads = {"num_key_value_heads": sizes.heads}
    return {**stack_settings(sizes), **heads, "max_position_embeddings": positions}


def vit_settings(sizes: ViTSizes, *, image_size: int) -> dict[str, Any]:
    """Returns them as CLIPVisionConfig has them."""
    return {**stack_settings(sizes), "image_size": image_size, "patch_size": sizes.patch_size}


def sam_vision_settings(sizes: SamSizes, *, image_size: int) -> dict[str, Any]:
    """Returns them as SamVisionConfig has them."""
    settings = vit_settings(sizes, image_size=image_size)
    inner = settings.pop("intermediate_size")
    return {
        **settings,
        "mlp_dim": inner,
        "window_size": sizes.window_size,
        "global_attn_indexes": list(sizes.global_layers),
        "output_channels": sizes.channels,
    }
