"""What PixelLLM learns from: words, the places of words, and masks; proposals have their losses beside them.

Legend: N rows, L tokens of a text, T predicted tokens, V vocabulary, S rows whose masks are drawn, H W pixels of the
canvas, h w those of the mask decoder.
"""

import torch
from torch import Tensor
from torch.nn import functional

FOCAL, DICE = 20.0, 1.0  # weights of a mask's two losses, as SAM's
_ALPHA, _GAMMA = 0.25, 2.0  # of the focal loss (arXiv 1708.02002)


def caption_loss(logits_TV: Tensor, targets_T: Tensor, *, ignored: int, smoothing: float) -> Tensor:
    """Means the smoothed cross-entropy over predicted tokens; zero, with a graph, where there is none.

    As published: the target has 1 - smoothing, all other tokens of the vocabulary share the rest.
    """
    said_T = targets_T != ignored
    shares_TV = logits_TV.float().log_softmax(-1)
    chosen_T = shares_TV.gather(1, targets_T.clamp(min=0)[:, None])[:, 0]
    others_T = (shares_TV.sum(-1) - chosen_T) / (shares_TV.shape[1] - 1)
    loss_T = -(1 - smoothing) * chosen_T - smoothing * others_T
    return (loss_T * said_T).sum() / said_T.sum().clamp(min=1)


def location_loss(points_NL22: Tensor, corners_NL22: Tensor, is_located_NL: Tensor, inside_N2: Tensor) -> Tensor:
    """Means the absolute error of the corners, in px of the canvas, over tokens whose place is known.

    `points` are in units of the image, `inside` is its width and height in px of the canvas. Zero, with a graph, where
    no place is known.
    """
    guess_NL22 = points_NL22.float() * inside_N2[:, None, None]
    error_NL = (guess_NL22 - corners_NL22).abs().mean(dim=(-1, -2))
    return torch.where(is_located_NL, error_NL, error_NL * 0).sum() / is_located_NL.sum().clamp(min=1)


def mask_loss(masks_S3hw: Tensor, scores_S3: Tensor, truth_SHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the focal and the Dice loss of each row's best mask, and the squared error of all scores: three means.

    As SAM learns (arXiv 2304.02643, appendix A): of three masks only that with the least loss learns, and a score is
    to be the IoU of its mask. Compared at the canvas's size, which is not told. All zero, with a graph, without truth.
    """
    if not len(truth_SHW):
        nothing = masks_S3hw.sum().float() * 0 + scores_S3.sum().float() * 0
        return nothing, nothing, nothing
    wide_S3HW = functional.interpolate(
        masks_S3hw.float(), size=truth_SHW.shape[-2:], mode="bilinear", align_corners=False
    )
    logits_S3P = wide_S3HW.flatten(2)
    truth_S3P = truth_SHW.flatten(1)[:, None].expand_as(logits_S3P).to(logits_S3P.dtype)
    focal_S3, dice_S3 = _focal(logits_S3P, truth_S3P), _dice(logits_S3P, truth_S3P)
    best_S1 = (FOCAL * focal_S3 + DICE * dice_S3).argmin(1, keepdim=True)
    error = (scores_S3.float() - _ious(logits_S3P, truth_S3P)).square().mean()
    return focal_S3.gather(1, best_S1).mean(), dice_S3.gather(1, best_S1).mean(), error


def _focal(logits_S3P: Tensor, truth_S3P: Tensor) -> Tensor:
    cross_S3P = functional.binary_cross_entropy_with_logits(logits_S3P, truth_S3P, reduction="none")
    missed_S3P = 1 - torch.exp(-cross_S3P)  # how far from sure of what is true
    weight_S3P = _ALPHA * truth_S3P + (1 - _ALPHA) * (1 - truth_S3P)
    return (weight_S3P * missed_S3P**_GAMMA * cross_S3P).mean(-1)


def _dice(logits_S3P: Tensor, truth_S3P: Tensor) -> Tensor:
    chance_S3P = logits_S3P.sigmoid()
    shared_S3 = 2 * (chance_S3P * truth_S3P).sum(-1)
    return 1 - (shared_S3 + 1) / (chance_S3P.sum(-1) + truth_S3P.sum(-1) + 1)


@torch.no_grad()
def _ious(logits_S3P: Tensor, truth_S3P: Tensor) -> Tensor:
    drawn_S3P, true_S3P = logits_S3P > 0, truth_S3P > 0
    return (drawn_S3P & true_S3P).sum(-1) / (drawn_S3P | true_S3P).sum(-1).clamp(min=1)
