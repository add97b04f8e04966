"""The training step of GLaMM as its authors published it, in plain PyTorch, for `benchmarks.glamm_step`.

Read off github.com/mbzuai-oryx/groundingLMM at e74865f (model/GLaMM.py, train.py): the same weights as ours, held in
the same modules, put to work in their way. Images go through SAM one by one, with the cache flushed before each on a
GPU; sequences are padded to the longest; logits and prompts are computed of every token; each image's masks are decoded
alone and compared at the image's own size. What is no part of a step (their loaders, their mmcv) is not rebuilt.

Legend: as in `stages/glamm/batches.py`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from stages.glamm.batches import IGNORED, GlammBatch
from stages.glamm.decoder import decode_masks
from stages.glamm.model import Glamm
from stages.glamm.task import Weights


def original_loss(model: Glamm, batch: GlammBatch, weights: Weights) -> Tensor:
    """Computes the loss of a micro-batch without packs, masks at their images' own sizes."""
    seen_PCHW = _seen_one_by_one(model, batch.sam_pixels_PCHW) if len(batch.seg_place_N) else None
    output = model.language_model.model(
        inputs_embeds=_embedded(model, batch), attention_mask=batch.attention_BL, use_cache=False
    )
    hidden_BLD: Tensor = output.last_hidden_state
    logits_BLV = model.language_model.lm_head(hidden_BLD).float()
    targets = batch.labels_BL[:, 1:].flatten()
    text = functional.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), targets, ignore_index=IGNORED)
    prompts_BLC = model.prompt_projection(hidden_BLD)
    if seen_PCHW is None:
        return weights.text * text
    bce, dice = _mask_losses(model, batch, prompts_BLC, seen_PCHW)
    return weights.text * text + weights.bce * bce + weights.dice * dice


@torch.no_grad()
def _seen_one_by_one(model: Glamm, pixels_PCHW: Tensor) -> Tensor:
    seen = []
    for pixels_CHW in pixels_PCHW:
        if pixels_CHW.is_cuda:
            torch.cuda.empty_cache()
        seen.append(model.sam.vision_encoder(pixels_CHW[None].to(_dtype(model))).last_hidden_state)
    return torch.cat(seen)


def _embedded(model: Glamm, batch: GlammBatch) -> Tensor:
    """Puts image and region features into the text, sample by sample."""
    with torch.no_grad():
        states = model.vision_tower(batch.clip_pixels_BCHW.to(_dtype(model)), output_hidden_states=True).hidden_states
    image_BND = model.projector(states[model.blueprint.feature_layer][:, 1:])
    regions_RD = None
    if len(batch.boxes_R4):
        levels_BND = [states[layer][:, 1:] for layer in model.blueprint.region.layers]
        regions_RD = model.region_encoder(levels_BND, batch.boxes_R4, batch.box_image_R)
    rows = []
    for number, ids_L in enumerate(batch.ids_BL):
        row_LD = model.language_model.get_input_embeddings()(ids_L)
        image_ND = image_BND[number].to(row_LD.dtype)
        first = int(batch.is_image_BL[number].nonzero()[0])
        row_LD = torch.cat([row_LD[:first], image_ND, row_LD[first + len(image_ND) :]])
        if regions_RD is not None:
            own_RD = regions_RD[batch.box_image_R == number].to(row_LD.dtype)
            row_LD = row_LD.index_put((batch.is_box_BL[number].nonzero()[:, 0],), own_RD)
        rows.append(row_LD)
    return torch.stack(rows)


def _mask_losses(model: Glamm, batch: GlammBatch, prompts_BLC: Tensor, seen_PCHW: Tensor) -> tuple[Tensor, Tensor]:
    bce, dice = prompts_BLC.new_zeros((), dtype=torch.float32), prompts_BLC.new_zeros((), dtype=torch.float32)
    count = sum(len(masks) for masks in batch.masks)
    pointed = [number for number, masks in enumerate(batch.masks) if len(masks)]
    for order, number in enumerate(pointed):
        own = batch.seg_image_N == order
        prompts_MC = prompts_BLC[batch.seg_sequence_N[own], batch.seg_place_N[own]]
        low_MHW = decode_masks(model.sam, seen_PCHW[order : order + 1], prompts_MC[None])[0]
        height, width = batch.sam_sizes_B2[number].tolist()
        square = (model.canvas, model.canvas)
        wide_1MHW = functional.interpolate(low_MHW[None].float(), square, mode="bilinear", align_corners=False)
        truth_MHW = batch.masks[number].float()
        size = truth_MHW.shape[-2:]
        logits = functional.interpolate(wide_1MHW[..., :height, :width], size, mode="bilinear", align_corners=False)
        logits_MP, truth_MP = logits[0].flatten(1), truth_MHW.flatten(1)
        per_pixel = functional.binary_cross_entropy_with_logits(logits_MP, truth_MP, reduction="none")
        bce = bce + per_pixel.mean(1).sum() / (count + 1e-8)
        guess_MP = logits_MP.sigmoid()
        overlap = 2 * (guess_MP / 1000 * truth_MP).sum(-1)
        whole = (guess_MP / 1000).sum(-1) + (truth_MP / 1000).sum(-1)
        dice = dice + (1 - (overlap + 1e-6) / (whole + 1e-6)).sum() / (count + 1e-8)
    return bce, dice


def _dtype(model: Glamm) -> torch.dtype:
    return next(model.projector.parameters()).dtype
