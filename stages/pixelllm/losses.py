"""What PixelLLM learns from: words, the places of words, and proposals.

Legend: N rows, L tokens of a text, T predicted tokens, V vocabulary.
"""

import torch
from torch import Tensor


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
