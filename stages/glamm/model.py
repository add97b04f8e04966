"""Glamm: a language model, two image encoders, and how they meet.

Legend: B images or sequences (see `batches.py`), L tokens, N tokens of one image or masks of all, T predicted tokens,
R boxes, P images with masks, D language width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, SamConfig, SamModel

from stages.adapters import inject_lora
from stages.glamm.batches import GlammBatch, WordsBatch
from stages.glamm.config import Blueprint
from stages.glamm.decoder import PromptProjection, decode_masks
from stages.glamm.region import PromptedRegions, RegionEncoder
from stages.roi import at_points

_FEW_PATCHES = 4  # a square of two by two: the least that group norms take


class Glamm(nn.Module):
    """Reads an image, text and boxes; predicts text, and a mask for every [SEG]."""

    def __init__(self, blueprint: Blueprint) -> None:
        """Builds every part with fresh weights."""
        super().__init__()
        self.blueprint = blueprint
        language = LlamaConfig(**blueprint.language)
        vision = CLIPVisionConfig(**blueprint.vision)
        grounding = SamConfig(**blueprint.grounding)
        width: int = language.hidden_size
        prompt: int = grounding.to_dict()["mask_decoder_config"]["hidden_size"]
        self.language_model = LlamaForCausalLM(language)
        self.vision_tower = CLIPVisionModel(vision)
        self.projector = nn.Sequential(nn.Linear(vision.hidden_size, width), nn.GELU(), nn.Linear(width, width))
        self.region_encoder = _region_encoder(blueprint, vision, language_size=width)
        self.prompt_projection = PromptProjection(width, prompt)
        self.sam = SamModel(grounding)
        if blueprint.lora is not None:
            inject_lora(self.language_model, blueprint.lora)
        self.canvas = blueprint.canvas_px

    def forward(self, batch: GlammBatch | WordsBatch) -> dict[str, Tensor]:
        """Returns `text_logits_TV`, `targets_T`, and `mask_logits_NHW` at the decoder's resolution.

        Of a WordsBatch, what `name` returns.

        Every batch runs every module: one without boxes reads a dummy box, one without masks decodes a dummy prompt,
        both with weight zero, so that ranks never differ in which weights they gather.
        """
        if isinstance(batch, WordsBatch):
            return self.name(batch)
        hidden_BLD = self.read(batch)
        return {
            "text_logits_TV": self.language_model.lm_head(hidden_BLD.flatten(0, 1)[batch.predicting_T]),
            "targets_T": batch.labels_BL.flatten()[batch.predicting_T + 1],
            "mask_logits_NHW": self.point(hidden_BLD, batch),
        }

    def name(self, batch: WordsBatch) -> dict[str, Tensor]:
        """Reads words straight off image and region tokens: `patch_logits_RKV` and `region_logits_RV`."""
        image_BND, levels_BND = self.see(self.encode(batch.clip_pixels_BCHW))
        patches_RKD = at_points(image_BND, batch.points_RK2, batch.box_image_R)
        regions_RD = self.region_encoder(levels_BND, batch.boxes_R4, batch.box_image_R)
        together_RJD = torch.cat([patches_RKD, regions_RD[:, None]], dim=1)
        logits_RJV = self.language_model.lm_head(self.language_model.model.norm(together_RJD))
        return {"patch_logits_RKV": logits_RJV[:, :-1], "region_logits_RV": logits_RJV[:, -1]}

    def read(self, batch: GlammBatch) -> Tensor:
        """Runs the language model over text, image and boxes: last hidden states B x L x D."""
        return self.attend(self.embed(batch), batch.position_BL, as_one="flash" in self._attention)

    def attend(self, embeds_BLD: Tensor, position_BL: Tensor | None, *, as_one: bool) -> Tensor:
        """Runs the language model: last hidden states B x L x D.

        Padding needs no mask: it stands on the right, where a causal model does not look. Of conversations that share
        a sequence none hears the others: by a mask, or, in the kernels of flash attention, by the ends within one long
        sequence (`as_one`), which transformers sees by positions that begin anew.

        Else the layers are run here: transformers' own loop asks the GPU at every call whether positions begin anew,
        and waits for the answer.
        """
        language = self.language_model.model
        if position_BL is not None and as_one:
            flat_LD: Tensor = language(
                inputs_embeds=embeds_BLD.flatten(0, 1)[None], position_ids=position_BL.flatten()[None], use_cache=False
            ).last_hidden_state[0]
            return flat_LD.view_as(embeds_BLD)
        places_BL = position_BL
        if places_BL is None:
            places_BL = torch.arange(embeds_BLD.shape[1], device=embeds_BLD.device)[None]
        turned, mask_B1LL = language.rotary_emb(embeds_BLD, position_ids=places_BL), None
        if position_BL is not None or self._attention == "eager":
            kind = embeds_BLD.dtype if self._attention == "eager" else torch.bool
            mask_B1LL = _heard(places_BL.to(embeds_BLD.device), kind)
        hidden_BLD = embeds_BLD
        for layer in language.layers:
            hidden_BLD = layer(hidden_BLD, attention_mask=mask_B1LL, position_embeddings=turned)
        hidden: Tensor = language.norm(hidden_BLD)
        return hidden

    @property
    def _attention(self) -> str:
        implementation: str = self.language_model.config._attn_implementation  # noqa: SLF001 - its only name
        return implementation

    def embed(self, batch: GlammBatch) -> Tensor:
        """Embeds text, image and boxes into one sequence: B x L x D."""
        seen = batch.seen
        image_BND, levels_BND = self.see(self.encode(batch.clip_pixels_BCHW) if seen is None else seen.patches_KBNC)
        if len(batch.boxes_R4):
            regions_RD = self.region_encoder(levels_BND, batch.boxes_R4, batch.box_image_R)
        else:
            whole = torch.zeros(1, 4, device=image_BND.device)
            whole[:, 2:] = 1.0  # made there: to bring it there would be to wait
            first = torch.zeros(1, dtype=torch.long, device=image_BND.device)
            little = [level[:1, :_FEW_PATCHES] for level in levels_BND]  # only its weights are asked for
            regions_RD = self.region_encoder(little, whole, first)
        embeds_BLD = self.language_model.get_input_embeddings()(batch.ids_BL)
        embeds_BLD = embeds_BLD.masked_scatter(batch.is_image_BL[..., None], image_BND.to(embeds_BLD.dtype))
        if len(batch.boxes_R4):
            embeds_BLD = embeds_BLD.masked_scatter(batch.is_box_BL[..., None], regions_RD.to(embeds_BLD.dtype))
        else:
            embeds_BLD = embeds_BLD + regions_RD.sum() * 0
        together: Tensor = embeds_BLD
        return together

    def encode(self, clip_pixels_BCHW: Tensor) -> list[Tensor]:
        """Encodes images: of each hidden state that is read (`Blueprint.read_states`) its patches, B x N x C."""
        states = self.vision_tower(clip_pixels_BCHW, output_hidden_states=True).hidden_states
        return [states[number][:, 1:] for number in self.blueprint.read_states]

    def see(self, patches: Sequence[Tensor] | Tensor) -> tuple[Tensor, list[Tensor]]:
        """Makes language tokens B x N x D of what `encode` gave, and the levels that the region encoder reads."""
        blueprint, kind = self.blueprint, next(self.projector.parameters()).dtype
        found = {
            number: patches_BNC.to(kind) for number, patches_BNC in zip(blueprint.read_states, patches, strict=True)
        }
        projected_BND = self.projector(found[blueprint.state(blueprint.feature_layer)])
        return projected_BND, [found[blueprint.state(layer)] for layer in blueprint.levels]

    def point(self, hidden_BLD: Tensor, batch: GlammBatch) -> Tensor:
        """Decodes the masks of a batch, all at once: logits N x H x W at the decoder's resolution.

        Of a batch without masks one prompt is decoded, which keeps every weight in use, with weight zero in the loss.
        """
        sequence_N, place_N, image_N = batch.seg_sequence_N, batch.seg_place_N, batch.seg_image_N
        if not len(place_N):
            sequence_N = place_N = image_N = torch.zeros(1, dtype=torch.long, device=hidden_BLD.device)
        prompts_NC = self.prompt_projection(hidden_BLD[sequence_N, place_N])
        if batch.seen is None:
            pixels_PCHW = batch.sam_pixels_PCHW.to(hidden_BLD.dtype)  # SAM, unlike CLIP, does not see to it itself
            images_PCHW = self.sam.vision_encoder(pixels_PCHW).last_hidden_state
        else:
            images_PCHW = batch.seen.images_PCHW.to(hidden_BLD.dtype)
        return decode_masks(self.sam, images_PCHW[image_N], prompts_NC[:, None])[:, 0]


def _region_encoder(
    blueprint: Blueprint, vision: CLIPVisionConfig, *, language_size: int
) -> RegionEncoder | PromptedRegions:
    width: int = vision.hidden_size
    if blueprint.prompter is not None:
        return PromptedRegions(blueprint.prompter, vision_size=width, language_size=language_size)
    side: int = vision.to_dict()["image_size"]
    return RegionEncoder(
        blueprint.region, vision_size=width, language_size=language_size,
        roi_scale=(blueprint.roi_side_px or side) / side,
    )  # fmt: skip


def _heard(position_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """Says what each token hears: itself and what stands before it in its own conversation, which begins at 0.

    B x 1 x L x L, true and false, or, in a type of real numbers, what is added to the scores.
    """
    conversation_BL = (position_BL == 0).cumsum(1)
    heard_BLL = (conversation_BL[:, :, None] == conversation_BL[:, None]).tril()
    if dtype == torch.bool:
        return heard_BLL[:, None]
    least = torch.finfo(dtype).min
    return torch.zeros_like(heard_BLL, dtype=dtype).masked_fill(~heard_BLL, least)[:, None]
