"""Dropout where the ranks of a tensor-parallel group have different features of the same tokens."""

import torch
from torch import Tensor, nn


class ShareDropout(nn.Module):
    """Dropout of features that each rank has others of: each draws its own mask, whole ones elsewhere stay the same."""

    def __init__(self, probability: float, share: int) -> None:
        """Drops features with this probability."""
        super().__init__()
        self.probability, self._share = probability, share

    def forward(self, features: Tensor) -> Tensor:
        """Takes one number from the random numbers that all ranks of the group have in common, whatever the share."""
        if not self.training:
            return features
        seed = int(torch.randint(2**62, ())) + self._share
        chance = torch.Generator(features.device).manual_seed(seed)
        kept = torch.rand(features.shape, generator=chance, device=features.device) >= self.probability
        return features * kept / (1 - self.probability)
