"""RehearsalTraining: learns a linear map and journals which samples each step saw. Imports torch only when it runs."""

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts import Checkpoint, Shards
from orchestrator.records import incidental, record
from orchestrator.stage import StageContext
from orchestrator.training.config import TrainConfig
from orchestrator.training.stage import TrainingStage

if TYPE_CHECKING:
    from stages.rehearsal.task import RehearsalTask


class RehearsalTraining(TrainingStage):
    """Learns the linear map behind `rehearsal_data`, at the pace it is told, and journals every step's samples.

    Before the `loss` event of a step the journal has one `samples` event for each of its micro-batches, with the keys
    that all ranks together saw, in rank order: lost, repeated and reordered samples show, and move the loss as well.
    """

    @record
    class Config:
        """How to train, how large, and how long a step lasts."""

        train: TrainConfig
        mixture: dict[str, float] = field(default_factory=dict)  # input -> weight; empty = equal
        features: int = 16
        targets: int = 4
        step_s: float = incidental(default=0.0)  # every step takes this much longer

        def __post_init__(self) -> None:
            """Refuses what no model has."""
            for name in ("features", "targets"):
                if (value := getattr(self, name)) < 1:
                    raise ValueError(f"{name} must be 1 or more, not {value}")
            if self.step_s < 0:
                raise ValueError(f"step_s must be 0 or more, not {self.step_s}")

    @record
    class Inputs:
        """What it learns from, and the model it goes on with, if any."""

        shards: dict[str, Shards]
        model: Checkpoint | None = None

    @record
    class Outputs:
        """The weights of the map."""

        model: Checkpoint

    def code_roots(self) -> tuple[str, ...]:
        """Names the code that planning does not import."""
        return ("stages.rehearsal.task",)

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Trains, telling the journal about samples. Collective: every rank must call."""
        self._context = context
        return super().run(context)

    def build_task(self) -> "RehearsalTask":
        """Makes the map, fresh or as another stage left it."""
        from stages.rehearsal.task import RehearsalTask

        config, start = self.config, self.inputs.model
        return RehearsalTask(
            self._context,
            features=config.features,
            targets=config.targets,
            pause_s=config.step_s / config.train.accumulation_on(self._context.world.size),
            start=None if start is None else start.path,
        )
