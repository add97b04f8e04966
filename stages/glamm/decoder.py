"""Language tokens to masks: the hidden state that predicts [SEG] becomes a prompt of SAM's mask decoder.

Legend: B images, M masks of an image, N masks of all images together, D language width, C prompt channels, H W pixels,
P points or pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SamModel

from orchestrator.records import record
from stages.mask_points import read_points, unsure_points
from stages.mask_sizes import masks_at_image_size
from stages.point_rule import PointRule


class PromptProjection(nn.Module):
    """Maps hidden states of the language model to prompts of the mask decoder."""

    def __init__(self, language_size: int, prompt_size: int) -> None:
        """Builds two linear layers."""
        super().__init__()
        self.hidden = nn.Linear(language_size, language_size)
        self.out = nn.Linear(language_size, prompt_size)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """Returns N x C."""
        prompts: Tensor = self.out(torch.relu(self.hidden(hidden_ND)))
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


def mask_losses(logits_NHW: Tensor, masks_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """Returns per mask the mean cross-entropy over pixels, or points, and the Dice loss: two vectors of N."""
    logits, masks = logits_NHW.float().flatten(1), masks_NHW.float().clamp(0, 1).flatten(1)
    bce_N = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(1)
    scale, smooth = 1000.0, 1e-6  # the scale only keeps the sums of large masks small
    guess = logits.sigmoid()
    overlap = 2 * (guess / scale * masks).sum(1)
    dice_N = 1 - (overlap + smooth) / (guess.sum(1) / scale + masks.sum(1) / scale + smooth)
    return bce_N, dice_N


@record
class Comparison:
    """Where the masks of a batch are compared."""

    canvas: int  # side of the square that the logits lie in
    insides: Sequence[tuple[int, int]]  # height and width of each image inside that square
    points: PointRule | None = None  # None: at every pixel that the masks have


def summed_mask_losses(
    low_NHW: Tensor, masks: Sequence[Tensor], seeds_N: Tensor, where: Comparison
) -> tuple[Tensor, Tensor, int]:
    """Sums both losses over all masks of the batch, each at the size it has; images of one size go together.

    Logits and seeds (of the points that are chosen by chance) are in the order of the masks.
    """
    counts = [len(mask) for mask in masks]
    bce, dice = low_NHW.sum().float() * 0, low_NHW.sum().float() * 0
    if not sum(counts):
        return bce, dice, 0
    groups: dict[tuple[tuple[int, int], tuple[int, int]], list[tuple[Tensor, Tensor, Tensor]]] = {}
    for mask, inside, low, seeds in zip(
        masks, where.insides, torch.split(low_NHW, counts), torch.split(seeds_N, counts), strict=True
    ):
        if len(mask):
            groups.setdefault((inside, (mask.shape[-2], mask.shape[-1])), []).append((low, mask, seeds))
    for (inside, image), parts in groups.items():
        low, truth, seeds = (torch.cat(part) for part in zip(*parts, strict=True))
        if where.points is None:
            logits = masks_at_image_size(low, canvas=where.canvas, inside=inside, image=image)
        else:
            extent_xy = (inside[1] / where.canvas, inside[0] / where.canvas)
            points_NP2 = unsure_points(low, seeds, where.points, extent_xy=extent_xy)
            logits = read_points(low, points_NP2, extent_xy=extent_xy)
            truth = read_points(truth, points_NP2)
        bce_N, dice_N = mask_losses(logits, truth)
        bce, dice = bce + bce_N.sum(), dice + dice_N.sum()
    return bce, dice, sum(counts)
