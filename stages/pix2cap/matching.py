"""Which query speaks for a segment: the one whose mask overlaps it best, prediction by prediction.

So the release does for captions; classes and masks are matched one to one by Mask2Former's own Hungarian matcher.

Legend: K predictions, B images, Q queries, M segments of an image, S captions of all images, h w mask logits' size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from stages.pix2cap.batches import Pix2CapBatch


@torch.no_grad()
def best_queries(mask_logits: Sequence[Tensor], batch: Pix2CapBatch) -> Tensor:
    """Returns, for each prediction (B x Q x h x w) and each caption, the query of the highest IoU: K x S."""
    size = mask_logits[0].shape[-2:]
    true = [_shrunk(masks_MHW, size) for masks_MHW in batch.masks]
    found = [
        [_ious(true_Mhw, logits_Qhw > 0).argmax(dim=1) for true_Mhw, logits_Qhw in zip(true, logits_BQhw, strict=True)]
        for logits_BQhw in mask_logits
    ]
    starts = torch.tensor([0, *(len(masks_MHW) for masks_MHW in batch.masks)], device=batch.image_S.device).cumsum(0)
    return torch.stack([torch.cat(best)[starts[batch.image_S] + batch.mask_S] for best in found])


def _shrunk(masks_MHW: Tensor, size: torch.Size) -> Tensor:
    """Brings masks to the size of mask logits; a pixel is set where any of what it is sampled from was."""
    if not len(masks_MHW):
        return masks_MHW.new_zeros(0, *size)
    return functional.interpolate(masks_MHW[None].float(), size=size, mode="bilinear", align_corners=False)[0] > 0


def _ious(true_Mhw: Tensor, predicted_Qhw: Tensor) -> Tensor:
    true, predicted = true_Mhw.flatten(1).float(), predicted_Qhw.flatten(1).float()
    shared_MQ = true @ predicted.T
    together_MQ = true.sum(1)[:, None] + predicted.sum(1)[None] - shared_MQ
    return shared_MQ / together_MQ.clamp(min=1)
