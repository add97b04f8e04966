"""The Prompter: what lies in a box, or where what is said lies, asked of the tokens of an image that is encoded once.

Legend: B images, P tokens of an image, Q tokens of a prompt, M prompts of an image, W width of the image encoder,
D dimensions of the shared space.
"""

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from stages.cloc.config import PrompterConfig
from stages.prompting import sinusoidal_corners

HEADS = 1


class BoxPrompt(nn.Module):
    """Makes of a box two tokens, one for each corner: sinusoids of its place, and a linear map of the corner's own."""

    def __init__(self, width: int, *, temperature: float) -> None:
        """Builds the two maps."""
        super().__init__()
        self._width, self._temperature = width, temperature
        self.top_left, self.bottom_right = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, boxes_BM4: Tensor) -> Tensor:
        """Returns B x M x 2 x W."""
        corners_N2W = sinusoidal_corners(boxes_BM4.flatten(0, 1), self._width, temperature=self._temperature)
        corners_N2W = corners_N2W.to(self.top_left.weight.dtype)
        both_N2W = torch.stack([self.top_left(corners_N2W[:, 0]), self.bottom_right(corners_N2W[:, 1])], dim=1)
        return torch.unflatten(both_N2W, 0, boxes_BM4.shape[:2])


class Prompter(nn.Module):
    """Image tokens and a prompt to an embedding: one layer with one head, then the mean of all tokens, projected."""

    def __init__(self, width: int, embedding_size: int, config: PrompterConfig) -> None:
        """Builds it for an image encoder of this width."""
        super().__init__()
        settings = CLIPVisionConfig(  # type: ignore[call-arg]  # transformers takes more than its signature says
            hidden_size=width, intermediate_size=config.mlp_ratio * width, num_attention_heads=HEADS, hidden_act="gelu",
            attn_implementation="sdpa",
        )  # fmt: skip
        self.box_prompt = BoxPrompt(width, temperature=config.temperature)
        self.text_prompt = nn.Linear(embedding_size, width)
        self.layer = CLIPEncoderLayer(settings)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embedding_size, bias=False)

    def forward(self, image_BPW: Tensor, prompts_BMQW: Tensor) -> Tensor:
        """Asks every prompt of an image: B x M x D, of any length. The prompt's tokens stand before the image's."""
        images, prompts = prompts_BMQW.shape[:2]
        repeated_BMPW = image_BPW[:, None].expand(-1, prompts, -1, -1)
        tokens_NTW = torch.cat([prompts_BMQW, repeated_BMPW], dim=2).flatten(0, 1)
        mixed_NTW = self.layer(tokens_NTW, None)
        embedded_ND: Tensor = self.projection(self.norm(mixed_NTW).mean(dim=1))
        return torch.unflatten(embedded_ND, 0, (images, prompts))

    def by_boxes(self, image_BPW: Tensor, boxes_BM4: Tensor) -> Tensor:
        """Asks what lies in boxes, in units of the square that was encoded (0..1): B x M x D."""
        asked: Tensor = self(image_BPW, self.box_prompt(boxes_BM4))
        return asked

    def by_phrases(self, image_BPW: Tensor, phrases_BMD: Tensor) -> Tensor:
        """Asks for what is said, by its embedding in the shared space: B x M x D."""
        asked: Tensor = self(image_BPW, self.text_prompt(phrases_BMD)[:, :, None])
        return asked


class BoxHead(nn.Module):
    """Reads a box off the embedding that a phrase was answered with: xyxy in units of the square (0..1)."""

    def __init__(self, embedding_size: int) -> None:
        """Builds two layers; the paper names no width for the hidden one: it is as wide as the embedding."""
        super().__init__()
        self.hidden, self.out = nn.Linear(embedding_size, embedding_size), nn.Linear(embedding_size, 4)

    def forward(self, embedded_BMD: Tensor) -> Tensor:
        """Returns B x M x 4."""
        boxes_BM4: Tensor = self.out(nn.functional.gelu(self.hidden(embedded_BMD)))
        return boxes_BM4
