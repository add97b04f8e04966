"""Cloc: a CLIP whose image tokens can be asked about boxes and phrases.

Legend: B images, P tokens of an image, M places for regions of an image, L tokens of a text, W width of an encoder,
D dimensions of the shared space, C channels, H W pixels.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from stages.cloc.batches import ClocBatch, Texts
from stages.cloc.config import Blueprint
from stages.cloc.prompter import BoxHead, PhrasePrompter
from stages.contrastive import in_parts
from stages.promptable import PrompterSizes
from stages.prompter import unit

FIRST_SCALE, MOST_SCALE = 1 / 0.07, 100.0  # of similarities, as in CLIP


class Cloc(nn.Module):
    """The two towers, the Prompter and the box head."""

    def __init__(self, blueprint: Blueprint) -> None:
        """Builds all parts; their weights come later."""
        super().__init__()
        self.blueprint = blueprint
        self.vision_model = CLIPVisionModel(CLIPVisionConfig(**blueprint.vision))
        self.text_model = CLIPTextModel(CLIPTextConfig(**blueprint.text))
        width, size = self.vision_model.config.hidden_size, blueprint.embedding_size
        heads = self.vision_model.config.num_attention_heads
        self.pool = AttentionPool(width, heads) if blueprint.pooling == "attention" else ClassPool()
        self.visual_projection = nn.Linear(width, size, bias=False)
        self.text_projection = nn.Linear(self.text_model.config.hidden_size, size, bias=False)
        self.prompter = PhrasePrompter(width, PrompterSizes(embedding_size=size, config=blueprint.prompter))
        self.box_head = BoxHead(size)
        # the paper's two contrasts are "the same"; that each has its own temperature is our reading
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(FIRST_SCALE)))  # ZeRO-3 takes no bare number
        self.region_logit_scale = nn.Parameter(torch.full((1,), math.log(FIRST_SCALE)))

    def forward(self, batch: ClocBatch, chunk: int | None = None) -> dict[str, Tensor]:
        """Embeds a batch, `chunk` images at a time; None: all at once. The result is the same.

        `images_BD` and `captions_BD`, `regions_BMD` (asked by their boxes) and `phrases_BMD`, all of unit length and in
        fp32; `boxes_BM4`, where the phrases are, xyxy in units of the square; `scale` and `region_scale`.
        """
        parts = in_parts(self._embed, batch.parts(chunk))
        images, captions, regions, phrases, boxes = (torch.cat(one) for one in zip(*parts, strict=True))
        return {
            "images_BD": images,
            "captions_BD": captions,
            "regions_BMD": regions,
            "phrases_BMD": phrases,
            "boxes_BM4": boxes,
            "scale": _scale(self.logit_scale),
            "region_scale": _scale(self.region_logit_scale),
        }

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Encodes images to tokens, the class token first: B x P x W, before anything is pooled or projected."""
        tokens_BPW: Tensor = self.vision_model(pixels_BCHW).last_hidden_state
        return tokens_BPW

    def embed_images(self, tokens_BPW: Tensor) -> Tensor:
        """Embeds whole images: B x D, of unit length."""
        return unit(self.visual_projection(self.pool(self.vision_model.post_layernorm(tokens_BPW))))

    def embed_texts(self, texts: Texts) -> Tensor:
        """Embeds texts by the state at their end: N x D, of unit length."""
        hidden_NLW = self.text_model(input_ids=texts.ids).last_hidden_state
        ends_NW = hidden_NLW[torch.arange(len(hidden_NLW), device=hidden_NLW.device), texts.last]
        return unit(self.text_projection(ends_NW))

    def embed_regions(self, tokens_BPW: Tensor, boxes_BM4: Tensor) -> Tensor:
        """Embeds what lies in boxes: B x M x D, of unit length."""
        return self.prompter.by_boxes(tokens_BPW[:, 1:], boxes_BM4)

    def locate(self, tokens_BPW: Tensor, phrases_BMD: Tensor) -> Tensor:
        """Says where phrases are, given their embeddings: B x M x 4, xyxy in units of the square, unchecked."""
        asked_BMD = self.prompter.by_phrases(tokens_BPW[:, 1:], phrases_BMD.to(tokens_BPW.dtype))
        boxes_BM4: Tensor = self.box_head(asked_BMD)
        return boxes_BM4

    def _embed(self, part: ClocBatch) -> tuple[Tensor, ...]:
        tokens_BPW = self.encode(part.pixels_BCHW)
        phrases = Texts(part.phrases.ids.flatten(0, 1), part.phrases.last.flatten())
        phrases_BMD = torch.unflatten(self.embed_texts(phrases), 0, part.real_BM.shape)
        return (
            self.embed_images(tokens_BPW),
            self.embed_texts(part.captions),
            self.embed_regions(tokens_BPW, part.boxes_BM4),
            phrases_BMD,
            self.locate(tokens_BPW, phrases_BMD).float(),
        )


class AttentionPool(nn.Module):
    """One learnt query that looks at all tokens of an image."""

    def __init__(self, width: int, heads: int) -> None:
        """Builds the query and the maps of keys, values and what comes of them."""
        super().__init__()
        self._heads = heads
        self.query = nn.Embedding(1, width)
        self.key, self.value, self.out = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, tokens_BPW: Tensor) -> Tensor:
        """Pools B x P x W to B x W."""
        query_1W = self.query(torch.zeros(1, dtype=torch.long, device=tokens_BPW.device))
        asked = self._split(query_1W[None].expand(len(tokens_BPW), -1, -1))
        seen = functional.scaled_dot_product_attention(
            asked, self._split(self.key(tokens_BPW)), self._split(self.value(tokens_BPW))
        )
        pooled_BW: Tensor = self.out(seen.transpose(1, 2).flatten(2)[:, 0])
        return pooled_BW

    def _split(self, tokens_BPW: Tensor) -> Tensor:
        return torch.unflatten(tokens_BPW, -1, (self._heads, -1)).transpose(1, 2)


class ClassPool(nn.Module):
    """CLIP's way: the class token stands for the image."""

    def forward(self, tokens_BPW: Tensor) -> Tensor:
        """Takes B x W of B x P x W."""
        return tokens_BPW[:, 0]


def _scale(logit: Tensor) -> Tensor:
    return logit[0].float().exp().clamp(max=MOST_SCALE)
