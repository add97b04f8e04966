"""PixClip: an image tower that sees a mask beside the pixels, and an adapter of a language model's embeddings of texts.

Legend: B pairs, S side of what the image tower reads, N patches, C channels of the tower, L tokens, E numbers of an
embedded text, D dimensions of the common space.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention

from stages.contrastive import in_parts
from stages.eva import image_tower
from stages.pixclip.batches import PixClipBatch, Texts
from stages.pixclip.config import Blueprint
from stages.roi import as_map, roi_align


class PixClip(nn.Module):
    """Embeds what a mask shows of an image, and texts, into one space."""

    def __init__(self, blueprint: Blueprint) -> None:
        """Builds every part with fresh weights."""
        super().__init__()
        self.blueprint = blueprint
        self.vision_model = image_tower(blueprint.vision_kind, blueprint.vision)
        width, patch_px = self.vision_model.config.hidden_size, blueprint.vision["patch_size"]
        biased = blueprint.vision_kind == "eva02"  # as released: of its patches and its projection, which CLIP's lack
        self.vision_model.embeddings.patch_embedding = MaskedPatches(width, patch_px, bias=biased)
        self.visual_projection = nn.Linear(width, blueprint.embedding_size, bias=biased)
        self.text_model = None if blueprint.text is None else read_both_ways(LlamaModel(LlamaConfig(**blueprint.text)))
        self.text_adapter = TextAdapter(blueprint)
        if blueprint.scale.learns:
            self.logit_scale = nn.Parameter(torch.tensor([math.log(blueprint.scale.initial)]))  # ZeRO-3 cuts no scalars

    def forward(self, batch: PixClipBatch, *, images_at_once: int | None = None) -> dict[str, Tensor]:
        """Returns embeddings of unit length in fp32, B x D each, and the `scale` of their similarities.

        `masked`: of the whole image through the mask; `regions`: pooled from its patches in the box; `crops`, where
        there are any: of the window around it, through the mask; `texts`. `images_at_once`: so many are computed
        together, and each part again on the way back, so that memory does not grow with the batch.
        """
        squares = [batch.whole_B4SS] if batch.crops_B4SS is None else [batch.whole_B4SS, batch.crops_B4SS]
        together_B4SS, boxes_B4 = torch.cat(squares), batch.boxes_B4.repeat(len(squares), 1)
        most = images_at_once or len(together_B4SS)
        parts = [(together_B4SS[at : at + most], boxes_B4[at : at + most]) for at in range(0, len(boxes_B4), most)]
        seen = _joined(self.look, parts)
        pairs = len(batch.whole_B4SS)
        found = {"masked": seen[0][:pairs], "regions": seen[1][:pairs], "texts": self.read(batch.texts)}
        if batch.crops_B4SS is not None:
            found["crops"] = seen[0][pairs:]
        found = {name: functional.normalize(embedded.float(), dim=-1) for name, embedded in found.items()}
        return {**found, "scale": self.similarity_scale()}

    def look(self, squares_and_boxes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Embeds squares (B x 4 x S x S), and their regions in boxes (B x 4): B x D each, of any length."""
        squares_B4SS, boxes_B4 = squares_and_boxes
        out = self.vision_model(squares_B4SS)
        patches_BNC = self.vision_model.post_layernorm(out.last_hidden_state[:, 1:])
        images_B = torch.arange(len(boxes_B4), device=boxes_B4.device)
        sampling = self.blueprint.roi_sampling
        regions_BC = roi_align(as_map(patches_BNC), boxes_B4, images_B, size=1, sampling=sampling).flatten(1)
        both_BD = self.visual_projection(torch.cat([out.pooler_output, regions_BC]))
        return both_BD[: len(boxes_B4)], both_BD[len(boxes_B4) :]

    def read(self, texts: Texts) -> Tensor:
        """Embeds texts: B x D, of any length."""
        embedded_BE = texts.embeddings_BE
        if self.text_model is not None:
            embedded_BE = mean_state(self.text_model, texts)
        assert embedded_BE is not None  # noqa: S101 - a batch holds what its model reads
        adapted_BD: Tensor = self.text_adapter(embedded_BE.to(next(self.text_adapter.parameters()).dtype))
        return adapted_BD

    def similarity_scale(self) -> Tensor:
        """Returns what similarities are multiplied by, in fp32."""
        settings = self.blueprint.scale
        if not settings.learns:
            return torch.tensor(settings.initial, device=self.visual_projection.weight.device)
        # the gradient passes the bound, or a scale that has once met it could never come back
        bounded = self.logit_scale.clamp(max=math.log(settings.most))
        return (self.logit_scale + (bounded - self.logit_scale).detach()).float().exp().squeeze(0)


class MaskedPatches(nn.Conv2d):
    """Embeds patches of pixels, and adds those of the mask: zero at first, so that a mask begins by changing nothing.

    It stands in the place of the tower's patch embedding: class token and positions are added after it (Alpha-CLIP).
    """

    def __init__(self, width: int, patch_px: int, *, bias: bool = False) -> None:
        """Builds both convolutions; the mask's has no bias."""
        super().__init__(3, width, patch_px, stride=patch_px, bias=bias)
        self.alpha = nn.Conv2d(1, width, patch_px, stride=patch_px, bias=False)
        nn.init.zeros_(self.alpha.weight)

    def forward(self, squares_B4SS: Tensor) -> Tensor:
        """Returns B x C x rows x columns."""
        masks: Tensor = self.alpha(squares_B4SS[:, 3:])
        return super().forward(squares_B4SS[:, :3]) + masks


class TextAdapter(nn.Module):
    """Brings a language model's embedding into the common space: unit length, residual blocks, norm, projection."""

    def __init__(self, blueprint: Blueprint) -> None:
        """Builds the layers in the order and with the names of LLM2CLIP's adapter."""
        super().__init__()
        size = blueprint.text_size
        blocks = [AdapterBlock(size, blueprint.adapter_expansion) for _ in range(blueprint.adapter_blocks)]
        self.layers = nn.Sequential(*blocks, nn.LayerNorm(size), nn.Linear(size, blueprint.embedding_size))

    def forward(self, embedded_BE: Tensor) -> Tensor:
        """Returns B x D."""
        adapted_BD: Tensor = self.layers(functional.normalize(embedded_BE, dim=-1))
        return adapted_BD


class AdapterBlock(nn.Module):
    """A norm, two linear layers and what came in."""

    def __init__(self, size: int, expansion: int) -> None:
        """Widens the vector by `expansion` between the two layers."""
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.widen = nn.Linear(size, expansion * size)
        self.narrow = nn.Linear(expansion * size, size)

    def forward(self, vector_BE: Tensor) -> Tensor:
        """Returns B x E."""
        added_BE: Tensor = self.narrow(functional.gelu(self.widen(self.norm(vector_BE))))
        return vector_BE + added_BE


def mean_state(language_model: nn.Module, texts: Texts) -> Tensor:
    """Means the last hidden states of a text's own tokens: B x E in fp32."""
    assert texts.attention_BL is not None  # noqa: S101 - tokens come with it
    hidden_BLE = language_model(
        input_ids=texts.ids_BL, attention_mask=texts.attention_BL, use_cache=False
    ).last_hidden_state
    own_BL1 = texts.attention_BL[..., None].float()
    mean_BE: Tensor = (hidden_BLE.float() * own_BL1).sum(1) / own_BL1.sum(1).clamp(min=1)
    return mean_BE


def read_both_ways(language_model: LlamaModel) -> LlamaModel:
    """Lets every token of a LLaMA see all others (LLM2Vec), in place."""
    language_model.config.is_causal = False  # transformers asks it which mask to make
    for module in language_model.modules():
        if isinstance(module, LlamaAttention):  # and these where no mask is needed, for no text is padded
            module.is_causal = False
    return language_model


def _joined(
    look: Callable[[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]], parts: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    found = in_parts(look, parts)
    return torch.cat([one for one, _ in found]), torch.cat([other for _, other in found])
