"""RehearsalTask: points to batches, batches to loss; tells the journal which samples each batch held.

Legend: B samples, F features, T targets.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.data.stream import Drawn
from orchestrator.errors import InputError
from orchestrator.records import record
from orchestrator.stage import StageContext
from orchestrator.training.task import Losses, TrainTask
from orchestrator.training.weights import load_into
from stages.rehearsal.points import from_members

SAMPLES = "samples"


@record
class Points:
    """A batch."""

    keys: tuple[str, ...]
    inputs_BF: Tensor
    outputs_BT: Tensor


class RehearsalTask(TrainTask[Points]):
    """Learns a linear map from points of it."""

    def __init__(
        self, context: StageContext, *, features: int, targets: int, pause_s: float, start: Path | None
    ) -> None:
        """Learns for `context`, and rests `pause_s` after each batch."""
        self._context, self._pause_s, self._start = context, pause_s, start
        self._features, self._targets = features, targets

    def build_model(self) -> nn.Module:
        """Builds the map, and a bias that has nothing to find."""
        return nn.Linear(self._features, self._targets)

    def load_weights(self, model: nn.Module) -> None:
        """Goes on from a checkpoint, if there is one. Collective: every rank must call."""
        if self._start is None:
            return
        report = load_into(model, self._start)
        if report.missing or report.unexpected:
            raise InputError(f"inputs.model: {self._start} is no rehearsal_training of this size: {report}")

    def collate(self, drawn: Sequence[Drawn]) -> Points:
        """Stacks samples; refuses those of another size."""
        points = [from_members(one.key, one.members) for one in drawn]
        for one, point in zip(drawn, points, strict=True):
            if (len(point.inputs), len(point.outputs)) != (self._features, self._targets):
                size = f"{len(point.inputs)} features and {len(point.outputs)} targets"
                raise InputError(f"{one.key} has {size}; the config says {self._features} and {self._targets}")
        return Points(
            keys=tuple(one.key for one in drawn),
            inputs_BF=torch.tensor([point.inputs for point in points]),
            outputs_BT=torch.tensor([point.outputs for point in points]),
        )

    def loss(self, model: nn.Module, batch: Points) -> Losses:
        """Computes the mean square error. Collective: every rank must call."""
        seen = self._context.world.gather(batch.keys)
        self._context.journal.append(SAMPLES, keys=[key for of_rank in seen for key in of_rank])
        time.sleep(self._pause_s)
        device = next(model.parameters()).device
        guess_BT = model(batch.inputs_BF.to(device))
        error = (guess_BT.float() - batch.outputs_BT.to(device)).square().mean()
        return Losses(total=error, terms={"error": error.detach()})

    def describe(self) -> Mapping[str, Any]:
        """Returns the size of the map."""
        return {"family": "rehearsal", "model": {"features": self._features, "targets": self._targets}}
