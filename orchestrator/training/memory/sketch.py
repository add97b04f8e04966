"""How a stage describes its model and its micro-batch to the planner of memory and cost. No torch.

`Stage.sketch` returns a `Sketch`; in the process that measures, the function that it names makes a `Sitting` of it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.records import record

if TYPE_CHECKING:
    from torch import nn

    from orchestrator.training.config import TrainConfig
    from orchestrator.training.task import Losses


@record
class Sketch:
    """A model and its micro-batches as plain data: all that is needed to build both, without weights.

    Where tensor-parallel ranks share a model, it is as large as what one of them holds (`parallel.plans.share_of`).
    """

    opener: str  # "module:function" that makes a Sitting of `plain`; may import torch
    plain: Mapping[str, Any]  # JSON-ready
    learning: tuple[str, ...]  # patterns of the parameters that learn
    train: "TrainConfig"


class Sitting(Protocol):
    """A family's model and micro-batches, to be looked at without weights."""

    parts: Sequence[str]  # names of modules whose memory is told apart, e.g. "sam.vision_encoder"

    def build_model(self) -> "nn.Module":
        """Builds the model; runs with torch's meta device as the default one."""

    def batch(self, samples: int) -> Any:
        """Makes a micro-batch as long as the stage's may become; on the CPU, index tensors with true values."""

    def loss(self, model: "nn.Module", batch: Any) -> "Losses":
        """Computes the loss as the stage's task does."""
