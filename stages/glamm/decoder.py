"""Language tokens to masks: the hidden state that predicts [SEG] becomes a prompt of SAM's mask decoder.

Legend: B images, M masks of an image (padded), D language width, C prompt channels, H W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SamModel


class PromptProjection(nn.Module):
    """Maps hidden states of the language model to prompts of the mask decoder."""

    def __init__(self, language_size: int, prompt_size: int) -> None:
        """Builds two linear layers."""
        super().__init__()
        self.hidden = nn.Linear(language_size, language_size)
        self.out = nn.Linear(language_size, prompt_size)

    def forward(self, hidden_BMD: Tensor) -> Tensor:
        """Returns B x M x C."""
        prompts: Tensor = self.out(torch.relu(self.hidden(hidden_BMD)))
        return prompts


def decode_masks(sam: SamModel, images_BCHW: Tensor, prompts_BMC: Tensor) -> Tensor:
    """Decodes one mask per prompt: logits B x M x H x W at the decoder's own (low) resolution."""
    batch, _, height, width = images_BCHW.shape
    position = sam.get_image_wide_positional_embeddings().to(images_BCHW.dtype)  # type: ignore[no-untyped-call]
    # calls the embedding instead of reading its weight: under ZeRO-3 only a module's own call gathers its weights
    nothing = sam.prompt_encoder.no_mask_embed(torch.zeros(1, dtype=torch.long, device=images_BCHW.device))
    dense = nothing[:, :, None, None].expand(batch, -1, height, width)
    logits, _ = sam.mask_decoder(
        image_embeddings=images_BCHW,
        image_positional_embeddings=position.expand(batch, -1, -1, -1),
        sparse_prompt_embeddings=prompts_BMC[:, :, None, :],
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    low: Tensor = logits[:, :, 0]
    return low


def masks_at_image_size(low_MHW: Tensor, *, canvas: int, inside: tuple[int, int], image: tuple[int, int]) -> Tensor:
    """Enlarges logits to SAM's square canvas, cuts the padding off, and resizes to the image: M x H x W, float32."""
    return batch_at_image_size(low_MHW[None], canvas=canvas, inside=inside, image=image)[0]


def batch_at_image_size(low_BMHW: Tensor, *, canvas: int, inside: tuple[int, int], image: tuple[int, int]) -> Tensor:
    """Does the same for images of one size together: B x M x H x W, float32."""
    wide = functional.interpolate(low_BMHW.float(), size=(canvas, canvas), mode="bilinear", align_corners=False)
    wide = wide[..., : inside[0], : inside[1]]
    if inside == image:
        return wide
    return functional.interpolate(wide, size=image, mode="bilinear", align_corners=False)


def mask_losses(logits_NHW: Tensor, masks_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """Returns per mask the mean cross-entropy over pixels, and the Dice loss: two vectors of N."""
    logits, masks = logits_NHW.float().flatten(1), masks_NHW.float().clamp(0, 1).flatten(1)
    bce_N = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(1)
    scale, smooth = 1000.0, 1e-6  # the scale only keeps the sums of large masks small
    guess = logits.sigmoid()
    overlap = 2 * (guess / scale * masks).sum(1)
    dice_N = 1 - (overlap + smooth) / (guess.sum(1) / scale + masks.sum(1) / scale + smooth)
    return bce_N, dice_N


def summed_mask_losses(
    low_BMHW: Tensor, has_mask_BM: Tensor, masks: Sequence[Tensor], sizes_B2: Tensor, *, canvas: int
) -> tuple[Tensor, Tensor, int]:
    """Sums both losses over all masks of the batch at the images' own sizes; images of one size go together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    sizes: list[list[int]] = sizes_B2.tolist()
    for index, mask in enumerate(masks):
        if len(mask):
            groups.setdefault((*sizes[index], *mask.shape[-2:]), []).append(index)
    bce, dice = low_BMHW.sum().float() * 0, low_BMHW.sum().float() * 0
    for (inside_h, inside_w, height, width), indices in groups.items():
        chosen = low_BMHW[indices]
        wide = batch_at_image_size(chosen, canvas=canvas, inside=(inside_h, inside_w), image=(height, width))
        truth = torch.cat([masks[index] for index in indices])
        bce_N, dice_N = mask_losses(wide[has_mask_BM[indices]], truth)
        bce, dice = bce + bce_N.sum(), dice + dice_N.sum()
    return bce, dice, sum(len(mask) for mask in masks)
