"""The prompt feature extractor: what an image shows where a prompt says, as a few tokens for the language model.

Legend: N rows, P prompt tokens, K learnt tokens, C channels of the image's map, W width, T token size, H W grid cells.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamTwoWayTransformer

from stages.pixelllm.config import ExtractorConfig


class PromptFeatures(nn.Module):
    """SAM's two-way transformer between the map and [learnt tokens ; prompt]; each learnt token has its own way out."""

    def __init__(self, config: ExtractorConfig, *, image_channels: int, prompt_channels: int) -> None:
        """Builds it with fresh weights."""
        super().__init__()
        width = config.width
        self.image = nn.Linear(image_channels, width)
        self.position = nn.Linear(prompt_channels, width)
        self.prompt = nn.Linear(prompt_channels, width)
        self.tokens_KW = nn.Parameter(torch.randn(config.tokens, width))
        self.ways_KWT = nn.Parameter(torch.randn(config.tokens, width, config.token_size) / width**0.5)
        self.transformer = SamTwoWayTransformer(
            SamMaskDecoderConfig(  # type: ignore[call-arg]  # transformers takes more than its signature says
                hidden_size=width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                mlp_dim=config.mlp_size,
                attention_downsample_rate=2,
                attn_implementation="sdpa",
            )
        )

    def forward(self, map_BCHW: Tensor, position_CHW: Tensor, prompts_NPC: Tensor, image_N: Tensor) -> Tensor:
        """Returns N x K x T."""
        image_BWHW = self.image(map_BCHW.movedim(1, -1)).movedim(-1, 1)
        position_WHW = self.position(position_CHW.movedim(0, -1)).movedim(-1, 0)
        learnt_NKW = self.tokens_KW.expand(len(prompts_NPC), -1, -1)
        queries_NQW = torch.cat([learnt_NKW, self.prompt(prompts_NPC)], dim=1)
        out_N1QW, _ = self.transformer(
            point_embeddings=queries_NQW[:, None],
            image_embeddings=image_BWHW[image_N],
            image_positional_embeddings=position_WHW[None].expand(len(image_N), -1, -1, -1),
            attention_similarity=None,
        )
        return torch.einsum("nkw,kwt->nkt", out_N1QW[:, 0, : len(self.tokens_KW)], self.ways_KWT)


class LocationHead(nn.Module):
    """Says where a token is: the top left and the bottom right of a box, in units of the image (0..1)."""

    def __init__(self, language_size: int, *, hidden_size: int, layers: int) -> None:
        """Builds a norm and `layers` linear layers with GELU between them."""
        super().__init__()
        sizes = [language_size, *[hidden_size] * (layers - 1)]
        hidden = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.GELU())]
        # published: 2 points of 4 numbers, two of which nothing uses; those are left out here
        self.layers = nn.Sequential(nn.LayerNorm(language_size), *hidden)
        self.last = nn.Linear(sizes[-1], 4)

    def forward(self, hidden_NLD: Tensor) -> Tensor:
        """Returns N x L x 2 x 2: for each token two points xy; a fresh head says the middle, nearly."""
        points: Tensor = (self.last(self.layers(hidden_NLD)) + 1) / 2
        return points.view(*points.shape[:-1], 2, 2)
