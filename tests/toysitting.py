"""The toy of `toys.py` as the planner of memory looks at it, and a training stage around it for plans."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts import Checkpoint, Shards
from orchestrator.records import record
from orchestrator.training.config import TrainConfig
from orchestrator.training.memory.sketch import Sketch
from orchestrator.training.stage import TrainingStage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from orchestrator.training.task import Losses, TrainTask

STAGES = {"train": "tests.toysitting:Train", "silent": "tests.toysitting:Silent"}
FAMILIES: Mapping[str, str] = {}
# what puts parameters into groups: nothing does
GROUPING = {"name": "adamw", "muon_skips": (), "lr_scales": {}, "weight_decay": 0.0, "layer_decay": None}


class Silent(TrainingStage):
    """Trains the toy, and says nothing about it."""

    @record
    class Config:
        train: TrainConfig
        mixture: dict[str, float]
        width: int = 64

    @record
    class Inputs:
        shards: dict[str, Shards]

    @record
    class Outputs:
        model: Checkpoint

    def faults(self) -> Mapping[str, str]:
        return {}  # its shards are never there

    def build_task(self) -> "TrainTask[Any]":
        from tests.toys import ToyTask

        return ToyTask(width=self.config.width)


class Train(Silent):
    """Describes itself."""

    def sketch(self, inputs: Mapping[str, Any]) -> Sketch:
        del inputs
        plain = {"width": self.config.width, "depth": 2, "length": 11}
        return Sketch(opener="tests.toysitting:open_toy", plain=plain, learning=("*",), train=self.train)


def open_toy(plain: Mapping[str, Any]) -> "ToySitting":
    """Opens a toy of this width, depth and length of sequences."""
    return ToySitting(**plain)


class ToySitting:
    """A toy without weights."""

    parts = ("embedding", "blocks.0", "blocks.1", "head")

    def __init__(self, *, width: int, depth: int, length: int) -> None:
        from tests.toys import ToyTask

        self._task, self._length = ToyTask(width=width, depth=depth), length

    def build_model(self) -> "nn.Module":
        return self._task.build_model()

    def batch(self, samples: int) -> "Tensor":
        import torch

        return torch.zeros(samples, self._length + 1, dtype=torch.long)

    def loss(self, model: "nn.Module", batch: "Tensor") -> "Losses":
        return self._task.loss(model, batch)
