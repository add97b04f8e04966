"""The losses: classes and masks as Mask2Former computes them, captions as GRiT does.

Legend: T predicted tokens, V vocabulary.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from stages.pix2cap.batches import Pix2CapBatch
from stages.pix2cap.config import LossConfig
from stages.pix2cap.model import Seen

NOTHING = -100  # the target of what must not be learnt
_PARTS = {"loss_cross_entropy": "classes", "loss_mask": "masks", "loss_dice": "dice"}


class SegmentLoss:
    """Matches queries to segments one to one (Hungarian method), prediction by prediction, and compares.

    Masks are compared at points, most of them where the prediction is least certain; which these are is drawn from
    torch's generator. Sums over masks are divided by the mean number of masks a rank has, as published, so that a mask
    weighs the same on a rank with many of them and on one with few. Collective: every rank must call.
    """

    def __init__(self, config: LossConfig, num_classes: int) -> None:
        """Takes weights, and the number of classes without the one that means none."""
        self._weights = {part: getattr(config, part) for part in _PARTS.values()}
        settings: dict[str, Any] = {
            "num_labels": num_classes,
            "no_object_weight": config.no_object,
            "class_weight": config.classes,
            "mask_weight": config.masks,
            "dice_weight": config.dice,
            "train_num_points": config.points,
            "oversample_ratio": config.oversample,
            "importance_sample_ratio": config.importance,
        }
        self._criterion = _Criterion(Mask2FormerConfig(**settings), {})

    def __call__(self, seen: Seen, batch: Pix2CapBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum over all predictions, and the parts of the last one, unweighted."""
        classes = seen.class_logits_KBQC.float()
        masks = [logits_BQhw.float() for logits_BQhw in seen.mask_logits]
        self._criterion.to(classes.device)
        *earlier, last = (
            {"masks_queries_logits": mask, "class_queries_logits": label}
            for mask, label in zip(masks, classes, strict=True)
        )
        self._criterion.masks = masks_a_rank(sum(len(one) for one in batch.classes), classes.device)
        labels = {"mask_labels": [one.float() for one in batch.masks], "class_labels": batch.classes}
        found: dict[str, Tensor] = self._criterion(**last, **labels, auxiliary_predictions=earlier)
        zero = sum((logits.sum() * 0 for logits in masks), start=classes.sum() * 0)  # masks may have no segment at all
        total = sum((self._weights[_part(name)] * value for name, value in found.items()), start=zero)
        return total, {part: found[name].detach() for name, part in _PARTS.items()}


class _Criterion(Mask2FormerLoss):
    """Mask2Former's, with the number of masks told: it asks for it at every prediction."""

    masks: Tensor

    def get_num_masks(self, class_labels: Any, device: Any) -> Tensor:
        """Returns what sums over masks are divided by."""
        del class_labels, device
        return self.masks


def masks_a_rank(here: int, device: torch.device) -> Tensor:
    """Returns the mean number of masks that a rank has, 1 or more. Collective: every rank must call."""
    count = torch.tensor(float(here), device=device)
    if dist.is_initialized():
        dist.all_reduce(count)
        count /= dist.get_world_size()
    return count.clamp(min=1)


def caption_loss(logits_TV: Tensor, targets_T: Tensor, *, smoothing: float) -> Tensor:
    """Means the KL divergence from words that are true with 1 - smoothing, the rest spread over all others.

    Zero, with a graph, where no target is to be learnt.
    """
    wanted_T = targets_T != NOTHING
    if not wanted_T.any():
        return logits_TV.float().sum() * 0
    logs_TV = torch.log_softmax(logits_TV.float(), dim=-1)[wanted_T]
    others = logits_TV.shape[-1] - 1
    true_T = logs_TV.gather(1, targets_T[wanted_T][:, None])[:, 0]
    missed_T = -(1 - smoothing) * true_T - smoothing / others * (logs_TV.sum(-1) - true_T)
    known = (1 - smoothing) * math.log(1 - smoothing)
    known += smoothing * math.log(smoothing / others) if smoothing else 0.0
    return missed_T.mean() + known


def _part(name: str) -> str:
    return next(part for stem, part in _PARTS.items() if name.startswith(stem))
