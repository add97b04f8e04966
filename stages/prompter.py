"""CLOC's Prompter (arXiv 2410.02746): what lies in a box, asked of the tokens of an image that is encoded once.

Legend: B images, R boxes, P tokens of an image, Q tokens of a prompt, M prompts of an image, W width of the image
encoder, D dimensions of the space that regions and texts share.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from stages.promptable import PrompterSizes
from stages.prompting import sinusoidal_corners
from stages.vision import CLIP_MEAN, CLIP_STD, Box, fit_square, normalised

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
    """Image tokens and a prompt to an embedding: one layer with one head, then the mean of all tokens, projected.

    Image tokens are those of the encoder's last layer, the class token left out, before anything is normalised, pooled
    or projected.
    """

    def __init__(self, width: int, sizes: PrompterSizes) -> None:
        """Builds it for an image encoder of this width."""
        super().__init__()
        settings = CLIPVisionConfig(  # type: ignore[call-arg]  # transformers takes more than its signature says
            hidden_size=width, intermediate_size=sizes.config.mlp_ratio * width, num_attention_heads=HEADS,
            hidden_act="gelu", attn_implementation="sdpa",
        )  # fmt: skip
        self.box_prompt = BoxPrompt(width, temperature=sizes.config.temperature)
        self.layer = CLIPEncoderLayer(settings)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, sizes.embedding_size, bias=False)

    def forward(self, image_BPW: Tensor, prompts_BMQW: Tensor) -> Tensor:
        """Asks every prompt of an image: B x M x D, of any length. The prompt's tokens stand before the image's."""
        images, prompts = prompts_BMQW.shape[:2]
        repeated_BMPW = image_BPW[:, None].expand(-1, prompts, -1, -1)
        tokens_NTW = torch.cat([prompts_BMQW, repeated_BMPW], dim=2).flatten(0, 1)
        mixed_NTW = self.layer(tokens_NTW, None)
        embedded_ND: Tensor = self.projection(self.norm(mixed_NTW).mean(dim=1))
        return torch.unflatten(embedded_ND, 0, (images, prompts))

    def by_boxes(self, image_BPW: Tensor, boxes_BM4: Tensor) -> Tensor:
        """Embeds what lies in boxes, in units of the square that was encoded (0..1): B x M x D, of unit length."""
        return unit(self(image_BPW, self.box_prompt(boxes_BM4)))


def unit(vectors_D: Tensor) -> Tensor:
    """Returns vectors of unit length, in fp32."""
    return functional.normalize(vectors_D.float(), dim=-1)


def square_pixels(image: Image.Image, side_px: int) -> Tensor:
    """Scales an image by its longer side and pads it right and below, as the encoder reads it: 3 x H x W."""
    return torch.from_numpy(normalised(fit_square(image, side_px).image, CLIP_MEAN, CLIP_STD))


def square_box(box_xyxy_px: Sequence[float], width_px: int, height_px: int) -> Box:
    """Turns pixels of an image into units of the square that it is padded to."""
    x0, y0, x1, y1 = (edge / max(width_px, height_px) for edge in box_xyxy_px)
    return x0, y0, x1, y1
