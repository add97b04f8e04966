"""Learning one batch by heart: whoever cannot do that learns nothing."""

from typing import Any

import torch
from torch import nn

from orchestrator.training.task import TrainTask


def learn_by_heart(
    task: TrainTask[Any], model: nn.Module, batch: Any, *, steps: int, lr: float
) -> list[dict[str, float]]:
    """Trains on the same batch again and again; returns "total" and every term of the loss before each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    seen = []
    for _ in range(steps):
        losses = task.loss(model, batch)
        seen.append({"total": losses.total.item(), **{name: float(term) for name, term in losses.terms.items()}})
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    return seen
