"""The mask branch: SAM's mask decoder, asked by the box that was said, to which an adapter adds what else is known.

Legend: S rows whose masks are drawn, K visual tokens, L tokens of a text, D language width, C channels of SAM's map,
H W its cells, h w four times as many. The decoder draws three masks for each row, as SAM does.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamAttention, SamMaskDecoder, SamTwoWayAttentionBlock

from stages.pixelllm.batches import PixelBatch
from stages.pixelllm.config import MaskAdapterConfig
from stages.prompting import SamPrompts

_HALF_PX = 0.5  # SAM means the middles of pixels by its boxes' corners


class MaskAdapter(nn.Module):
    """A two-way transformer between two learnt tokens and [visual tokens ; text states], behind a gate.

    The gate begins closed: the decoder then reads SAM's own two tokens of the box, as it was trained to. How the two
    kinds of states come to C channels is not told: here each has a linear map of its own.
    """

    def __init__(self, config: MaskAdapterConfig, *, language_size: int, channels: int) -> None:
        """Builds it with fresh weights."""
        super().__init__()
        settings = _two_way(channels, config.layers, config.heads, config.mlp_size)
        self.visual, self.text = (nn.Linear(language_size, channels) for _ in range(2))
        self.tokens_2C = nn.Parameter(torch.randn(2, channels))
        self.layers = nn.ModuleList(
            [SamTwoWayAttentionBlock(settings, skip_first_layer_pe=number == 0) for number in range(config.layers)]
        )
        self.final = SamAttention(settings)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        self.norm = nn.LayerNorm(channels)
        self.gate_1 = nn.Parameter(torch.zeros(1))

    def forward(self, visual_SKD: Tensor, text_SLD: Tensor, is_text_SL: Tensor) -> Tensor:
        """Returns what is added to the two tokens of a box: S x 2 x C."""
        tokens_S12C = self.tokens_2C.expand(len(visual_SKD), 1, -1, -1)
        keys = torch.cat([self.visual(visual_SKD), self.text(text_SLD)], dim=1)[:, None]
        is_key_SN = torch.cat([is_text_SL.new_ones(visual_SKD.shape[:2]), is_text_SL], dim=1)
        # SAM's own transformer reads whole maps; here padding must not be looked at, so its blocks are called singly
        closed = torch.finfo(keys.dtype).min
        bias_S11N = torch.zeros_like(is_key_SN, dtype=keys.dtype).masked_fill(~is_key_SN, closed)[:, None, None]
        queries = tokens_S12C
        for layer in self.layers:
            queries, keys, _ = layer(
                queries=queries, keys=keys, query_point_embedding=tokens_S12C,
                key_point_embedding=torch.zeros_like(keys[:1]), attention_similarity=bias_S11N,
            )  # fmt: skip
        found, _ = self.final(query=queries + tokens_S12C, key=keys, value=keys, attention_similarity=bias_S11N)
        added: Tensor = self.gate_1.tanh() * self.norm(queries + found)[:, 0]
        return added


class MaskBranch(nn.Module):
    """Draws the masks of rows whose box has been said."""

    def __init__(
        self, decoder: dict[str, Any], adapter: MaskAdapterConfig, *, language_size: int, channels: int, canvas_px: int
    ) -> None:
        """Builds it with fresh weights."""
        super().__init__()
        # transformers takes more than its signature says
        settings = SamMaskDecoderConfig(**decoder, attn_implementation="sdpa")  # type: ignore[call-arg]
        self.decoder = SamMaskDecoder(settings)
        self.adapter = MaskAdapter(adapter, language_size=language_size, channels=channels)
        self.canvas = canvas_px

    def forward(
        self, place_SCHW: Tensor, prompts: SamPrompts, boxes_S4: Tensor, added_to: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns logits S x 3 x h x w and how good each mask should be, S x 3.

        `boxes` are in units of the canvas; `added_to` is what the adapter reads.
        """
        dtype, (height, width) = place_SCHW.dtype, place_SCHW.shape[-2:]
        sparse_S2C = prompts(boxes_S4).to(dtype) + self.adapter(*added_to)
        nothing_C11 = prompts.no_mask().to(dtype)[:, None, None]
        logits_S13hw, scores_S13 = self.decoder(
            image_embeddings=place_SCHW,
            image_positional_embeddings=prompts.grid(height, width).to(dtype).expand(len(place_SCHW), -1, -1, -1),
            sparse_prompt_embeddings=sparse_S2C[:, None],
            dense_prompt_embeddings=nothing_C11.expand(len(place_SCHW), -1, height, width),
            multimask_output=True,
        )
        return logits_S13hw[:, 0], scores_S13[:, 0]


def said_boxes(points_NL22: Tensor, batch: PixelBatch, drawn_S: Tensor, *, canvas_px: int) -> Tensor:
    """Reads the boxes of rows off their last tokens: S x 4, xyxy in units of the canvas, half a pixel further.

    Without a graph: places are learnt from boxes alone. What the release does there is not told.
    """
    last_S22 = points_NL22.detach()[drawn_S, batch.last_N[drawn_S]].float().clamp(0, 1)
    corners_S4 = torch.cat([last_S22.amin(1), last_S22.amax(1)], dim=-1)
    inside_S2 = batch.inside_B2[batch.image_N[drawn_S]]
    return (corners_S4 * inside_S2.repeat(1, 2) + _HALF_PX) / canvas_px


def _two_way(channels: int, layers: int, heads: int, mlp_size: int) -> SamMaskDecoderConfig:
    return SamMaskDecoderConfig(  # type: ignore[call-arg]  # transformers takes more than its signature says
        hidden_size=channels,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        mlp_dim=mlp_size,
        attn_implementation="sdpa",
    )
