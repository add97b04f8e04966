"""EVA-02's image tower (arXiv 2303.11331): a ViT with rotary positions, SwiGLU and norms inside its layers.

It is called, and its parts are called, as CLIP's tower of transformers: patterns of what learns, decay by layers and
readers of weights mean both. Written from the paper and from what two releases compute (baaivision/EVA, EVA-CLIP; the
tower of google-research/scenic's pixel_llm); compared with timm 1.0.20, see tests/stages/test_eva.py.
All norms have an epsilon of 1e-6 as in EVA-CLIP and timm; pixel_llm has 1e-5 in the one inside the MLP.

Legend: B images, S their side in px, N tokens with the class token first, C channels, H heads, D channels of a head,
P pairs of them.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from orchestrator.records import record
from stages.towers import PAIRS, TowerKind

EPSILON = 1e-6
SLOWEST = 10_000.0  # rotary frequencies fall from 1 to nearly one over this


@record
class EvaSettings:
    """All that an EVA-02 is built from, as a blueprint holds it."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    inner_norm: bool
    rotary_grid: int | None
    drop_path: float
    normed: bool

    @property
    def side(self) -> int:
        """Returns the patches of a side."""
        return self.image_size // self.patch_size


class EvaVisionModel(nn.Module):
    """Encodes square images; what it gives is named as CLIPVisionModel's."""

    def __init__(self, config: EvaSettings) -> None:
        """Builds it with fresh weights."""
        super().__init__()
        self.config = config
        self.embeddings = EvaEmbeddings(config)
        self.encoder = EvaEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=EPSILON)

    def forward(self, pixels_B3SS: Tensor) -> BaseModelOutputWithPooling:
        """Returns `last_hidden_state` (B x N x C), normed if so set, and `pooler_output` (B x C), which always is."""
        states_BNC = self.encoder(self.embeddings(pixels_B3SS))
        if self.config.normed:
            states_BNC = self.post_layernorm(states_BNC)
            return BaseModelOutputWithPooling(last_hidden_state=states_BNC, pooler_output=states_BNC[:, 0])
        pooled_BC = self.post_layernorm(states_BNC[:, 0])
        return BaseModelOutputWithPooling(last_hidden_state=states_BNC, pooler_output=pooled_BC)


def image_tower(kind: TowerKind, settings: Mapping[str, Any]) -> CLIPVisionModel | EvaVisionModel:
    """Builds the tower of a blueprint."""
    if kind == "eva02":
        return EvaVisionModel(EvaSettings(**settings))
    return CLIPVisionModel(CLIPVisionConfig(**settings))


class EvaEmbeddings(nn.Module):
    """Patches, a class token before them, and a learnt position for each."""

    def __init__(self, config: EvaSettings) -> None:
        """Builds it; the patches have a bias, unlike CLIP's."""
        super().__init__()
        width = config.hidden_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Embedding(1 + config.side**2, width)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """Returns B x N x C."""
        patches_BCRR = self.patch_embedding(pixels_B3SS.to(self.patch_embedding.weight.dtype))
        class_B1C = self.class_embedding.expand(len(patches_BCRR), 1, -1)
        tokens_BNC = torch.cat([class_B1C, patches_BCRR.flatten(2).transpose(1, 2)], dim=1)
        positions_NC: Tensor = self.position_embedding(torch.arange(tokens_BNC.shape[1], device=tokens_BNC.device))
        return tokens_BNC + positions_NC


class EvaEncoder(nn.Module):
    """The layers, one after the other, and how they are computed."""

    def __init__(self, config: EvaSettings) -> None:
        """Skips later layers more often than earlier ones, in even steps from 0."""
        super().__init__()
        self._config, self._recomputing = config, dict[str, bool]()
        steps = max(1, config.num_hidden_layers - 1)
        rates = [config.drop_path * number / steps for number in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(EvaLayer(config, rate) for rate in rates)

    def forward(self, states_BNC: Tensor) -> Tensor:
        """Returns B x N x C."""
        config = self._config
        head = config.hidden_size // config.num_attention_heads
        angles_NP = rotary_angles(config.side, head, grid=config.rotary_grid, device=states_BNC.device)
        turn = angles_NP.cos(), angles_NP.sin()
        for layer in self.layers:
            if self._recomputing and self.training:
                states_BNC = checkpoint(layer, states_BNC, *turn, **self._recomputing)  # type: ignore[arg-type]
            else:
                states_BNC = layer(states_BNC, *turn)
        return states_BNC

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, bool]) -> None:
        """Lets each layer forget its activations and compute them again on the way back."""
        self._recomputing = dict(gradient_checkpointing_kwargs)

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Chooses how attention is computed; ValueError for a way that is not offered."""
        if attn_implementation not in {"sdpa", "eager"}:
            raise ValueError(f"EVA-02 has sdpa and eager, not {attn_implementation}")
        for module in self.modules():
            if isinstance(module, EvaAttention):
                module.eager = attn_implementation == "eager"


class EvaLayer(nn.Module):
    """Attention and MLP, each after a norm and added to what came in."""

    def __init__(self, config: EvaSettings, drop_path: float) -> None:
        """Takes how often either is skipped in training."""
        super().__init__()
        self._drop_path = drop_path
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=EPSILON)
        self.self_attn = EvaAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=EPSILON)
        self.mlp = EvaMlp(config.hidden_size, config.intermediate_size)

    def forward(self, states_BNC: Tensor, cos_NP: Tensor, sin_NP: Tensor) -> Tensor:
        """Returns B x N x C."""
        states_BNC = states_BNC + self._kept(self.self_attn(self.layer_norm1(states_BNC), cos_NP, sin_NP))
        return states_BNC + self._kept(self.mlp(self.layer_norm2(states_BNC)))

    def _kept(self, added_BNC: Tensor) -> Tensor:
        """Skips some images (stochastic depth); what stays is enlarged, so that the mean stays."""
        if not self.training or self._drop_path == 0:
            return added_BNC
        return added_BNC * functional.dropout(added_BNC.new_ones(len(added_BNC), 1, 1), self._drop_path)


class EvaAttention(nn.Module):
    """Every token sees all; queries and keys are turned by where they are, the class token's by nothing."""

    def __init__(self, config: EvaSettings) -> None:
        """Builds the projections; keys have no bias."""
        super().__init__()
        width = config.hidden_size
        self.eager = False
        self._heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.inner_norm = nn.LayerNorm(width, eps=EPSILON) if config.inner_norm else nn.Identity()
        self.out_proj = nn.Linear(width, width)

    def forward(self, states_BNC: Tensor, cos_NP: Tensor, sin_NP: Tensor) -> Tensor:
        """Returns B x N x C."""
        queries_BHND, keys_BHND, values_BHND = (
            project(states_BNC).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        queries_BHND, keys_BHND = (turned(one, cos_NP, sin_NP) for one in (queries_BHND, keys_BHND))
        if self.eager:
            scores_BHNN = queries_BHND @ keys_BHND.transpose(-1, -2) / math.sqrt(queries_BHND.shape[-1])
            seen_BHND = scores_BHNN.softmax(-1, dtype=torch.float32).to(values_BHND.dtype) @ values_BHND
        else:
            seen_BHND = functional.scaled_dot_product_attention(queries_BHND, keys_BHND, values_BHND)
        given_BNC: Tensor = self.out_proj(self.inner_norm(seen_BHND.transpose(1, 2).flatten(2)))
        return given_BNC


class EvaMlp(nn.Module):
    """SwiGLU with a norm before its last layer; as released it widens to 8/3 of the width."""

    def __init__(self, width: int, inner: int) -> None:
        """Builds the layers."""
        super().__init__()
        self.gate_proj = nn.Linear(width, inner)
        self.up_proj = nn.Linear(width, inner)
        self.norm = nn.LayerNorm(inner, eps=EPSILON)
        self.down_proj = nn.Linear(inner, width)

    def forward(self, states_BNC: Tensor) -> Tensor:
        """Returns B x N x C."""
        inner = functional.silu(self.gate_proj(states_BNC)) * self.up_proj(states_BNC)
        given_BNC: Tensor = self.down_proj(self.norm(inner))
        return given_BNC


def rotary_angles(side: int, head: int, *, grid: int | None, device: torch.device) -> Tensor:
    """Returns by how much each pair of a head's channels is turned: N x P, in fp32.

    The first half of the pairs turns with the row, the other with the column; the first token, of the class, does not
    turn. `grid`: a square of `side` patches is measured as one of `grid`.
    """
    bands = head // PAIRS
    frequencies_F = SLOWEST ** -(torch.arange(bands, device=device, dtype=torch.float32) / bands)
    places_R = torch.arange(side, device=device, dtype=torch.float32) * (1.0 if grid is None else grid / side)
    angles_RF = places_R[:, None] * frequencies_F
    rows_RRF, columns_RRF = angles_RF[:, None].expand(-1, side, -1), angles_RF[None].expand(side, -1, -1)
    patches_NP = torch.cat([rows_RRF, columns_RRF], dim=-1).flatten(0, 1)
    return torch.cat([torch.zeros_like(patches_NP[:1]), patches_NP])


def turned(states_BHND: Tensor, cos_NP: Tensor, sin_NP: Tensor) -> Tensor:
    """Turns pairs of neighbouring channels, in fp32: B x H x N x D."""
    first_BHNP, second_BHNP = states_BHND.float().reshape(*states_BHND.shape[:-1], -1, 2).unbind(-1)
    pairs = (first_BHNP * cos_NP - second_BHNP * sin_NP, second_BHNP * cos_NP + first_BHNP * sin_NP)
    return torch.stack(pairs, dim=-1).flatten(-2).to(states_BHND.dtype)
