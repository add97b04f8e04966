"""Losses over logits of which each tensor-parallel rank may have a share of the words only."""

import torch
from torch import Tensor
from torch.nn import functional


def word_losses(logits_TV: Tensor, targets_T: Tensor, *, vocabulary: int) -> Tensor:
    """Computes the cross-entropy of every token: T. The logits are whole, or this rank's share of them.

    For tasks that say so (`TrainTask.cut_logits`). Collective within a tensor-parallel group where logits are cut.
    """
    if logits_TV.shape[-1] == vocabulary:
        return functional.cross_entropy(logits_TV.float(), targets_T, reduction="none")
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    # it works in place, on the caller's own tensor where that is in fp32 already
    own_TV = logits_TV.clone() if logits_TV.dtype == torch.float32 else logits_TV
    losses_T: Tensor = vocab_parallel_cross_entropy(own_TV, targets_T)
    return losses_T
