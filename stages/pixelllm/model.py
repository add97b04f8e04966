"""PixelLLM: two image encoders, a prompt that asks for a part of what they see, and a language model that says where.

Legend: B images, N rows (see `batches.py`), K visual tokens, M context tokens, L text tokens, T predicted tokens,
C channels, D language width, V vocabulary, H W cells of the map.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SamVisionConfig, SamVisionModel

from stages.eva import image_tower
from stages.pixelllm.batches import IGNORED, PixelBatch
from stages.pixelllm.config import Blueprint
from stages.pixelllm.detector import Detector
from stages.pixelllm.extractor import LocationHead, PromptFeatures
from stages.pixelllm.masks import MaskBranch, said_boxes
from stages.pixelllm.speakers import BertSpeaker, Speaker, T5Speaker
from stages.prompting import SamPrompts


@dataclass(slots=True)
class Sight:
    """What both image encoders see, and what the one that knows places sees alone."""

    map_BCHW: Tensor
    place_BCHW: Tensor


class PixelLLM(nn.Module):
    """Writes about an image, or a box in it, and says of every token where in the image it is."""

    language: Speaker

    def __init__(self, blueprint: Blueprint) -> None:
        """Builds every part with fresh weights."""
        super().__init__()
        self.blueprint = blueprint
        width, extractor, channels = blueprint.language_size, blueprint.extractor, blueprint.prompt_channels
        self.semantic = image_tower(blueprint.semantic_kind, blueprint.semantic)
        self.localization = SamVisionModel(SamVisionConfig(**blueprint.localization))
        self.prompts = SamPrompts(channels)
        fused = self.semantic.config.hidden_size + channels
        self.extractor = PromptFeatures(extractor, image_channels=fused, prompt_channels=channels)
        self.projection = nn.Sequential(nn.Linear(extractor.token_size, width), nn.LayerNorm(width))
        if blueprint.language_kind == "t5":
            self.language = T5Speaker(blueprint.language, blueprint.lora)
        else:
            self.language = BertSpeaker(blueprint.language)
        head = blueprint.location
        self.location = LocationHead(width, hidden_size=head.hidden_size, layers=head.layers)
        detector, canvas = blueprint.detector, blueprint.canvas_px
        self.detector = None if detector is None else Detector(detector, fused, canvas_px=canvas)
        decoder, adapter = blueprint.mask_decoder, blueprint.mask_adapter
        self.masks = (
            None
            if decoder is None or adapter is None
            else MaskBranch(decoder, adapter, language_size=width, channels=channels, canvas_px=canvas)
        )

    def forward(self, batch: PixelBatch) -> dict[str, Tensor]:
        """Returns `logits_TV`, `targets_T`, `points_NL22` in units of the image, and what further parts give.

        Of a detector the fields of Proposed, of a mask branch `masks_S3hw` (logits) with `scores_S3`.

        Every batch of a training runs the same modules: one without words to predict has one token said with the
        target IGNORED, one without masks to draw has its first row's drawn, so that ranks never differ in which weights
        they gather. Parts that nothing in this training teaches are idle in all of them.
        """
        sight = self.see(batch.semantic_pixels_BCHW, batch.localization_pixels_BCHW)
        visual_NKD = self.look(sight.map_BCHW, batch.prompts_N4, batch.image_N)
        states_NSD, is_state_NS = self.language.read(visual_NKD, batch.context_NM, batch.is_context_NM)
        hidden_NLD, _ = self.language.hear(states_NSD, is_state_NS, batch.ids_NL, keep=False)
        wanted_NL = batch.targets_NL != IGNORED
        if not bool(wanted_NL.any()):
            wanted_NL = torch.zeros_like(wanted_NL)
            wanted_NL[0, 0] = True
        said = {
            "logits_TV": self.language.say(hidden_NLD[wanted_NL]),
            "targets_T": batch.targets_NL[wanted_NL],
            "points_NL22": self.location(hidden_NLD),
        }
        if self.masks is not None and "masks" not in batch.idle:
            said |= self._drawn(batch, sight, visual_NKD, hidden_NLD, said["points_NL22"])
        if self.detector is not None and "detector" not in batch.idle:
            said |= self.detector(sight.map_BCHW)
        return said

    def see(self, semantic_pixels_BCHW: Tensor, localization_pixels_BCHW: Tensor) -> Sight:
        """Encodes images twice and lays the maps on each other, the smaller one enlarged."""
        semantic_BND = self.semantic(semantic_pixels_BCHW).last_hidden_state[:, 1:]
        side = round(semantic_BND.shape[1] ** 0.5)
        semantic = semantic_BND.transpose(1, 2).reshape(len(semantic_BND), -1, side, side)
        # SAM, unlike the other, does not see to the type itself
        place = self.localization(localization_pixels_BCHW.to(semantic.dtype)).last_hidden_state
        grid = (max(side, place.shape[-1]),) * 2
        return Sight(torch.cat([_enlarged(semantic, grid), _enlarged(place, grid)], dim=1), place)

    def look(self, map_BCHW: Tensor, prompts_N4: Tensor, image_N: Tensor) -> Tensor:
        """Reads off the maps what boxes ask for: visual tokens N x K x D."""
        height, width = map_BCHW.shape[-2:]
        corners_N2C = self.prompts(prompts_N4).to(map_BCHW.dtype)
        position_CHW = self.prompts.grid(height, width).to(map_BCHW.dtype)
        features_NKT = self.extractor(map_BCHW, position_CHW, corners_N2C, image_N)
        visual: Tensor = self.projection(features_NKT)
        return visual

    def _drawn(
        self, batch: PixelBatch, sight: Sight, visual_NKD: Tensor, hidden_NLD: Tensor, points_NL22: Tensor
    ) -> dict[str, Tensor]:
        assert self.masks is not None  # noqa: S101 - whoever calls has looked
        drawn_S = batch.drawn_S if len(batch.drawn_S) else torch.zeros_like(batch.image_N[:1])
        boxes_S4 = said_boxes(points_NL22, batch, drawn_S, canvas_px=self.masks.canvas)
        is_text_SL = torch.arange(hidden_NLD.shape[1], device=drawn_S.device) <= batch.last_N[drawn_S][:, None]
        masks_S3hw, scores_S3 = self.masks(
            sight.place_BCHW[batch.image_N[drawn_S]], self.prompts, boxes_S4,
            (visual_NKD[drawn_S], hidden_NLD[drawn_S], is_text_SL),
        )  # fmt: skip
        return {"masks_S3hw": masks_S3hw, "scores_S3": scores_S3}


def _enlarged(map_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(map_BCHW.shape[-2:]) == size:
        return map_BCHW
    # in float32: bicubic weights lose too much in bfloat16
    larger = functional.interpolate(map_BCHW.float(), size=size, mode="bicubic", align_corners=False)
    return larger.to(map_BCHW.dtype)
