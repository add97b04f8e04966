"""A stage that trains: everything but its model, its batches and its loss. Imports torch only when it runs."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.artifacts import Checkpoint, Shards
from orchestrator.stage import Stage, StageContext
from orchestrator.training.config import TrainConfig

if TYPE_CHECKING:
    from orchestrator.training.task import TrainTask


class TrainingStage(Stage):
    """A stage whose run is the training loop.

    Its Config has `train: TrainConfig` and `mixture: dict[str, float]` (name of an input -> weight; empty = equal), its
    Inputs have `shards: dict[str, Shards]`, its Outputs have `model: Checkpoint`.
    """

    trainable: ClassVar[tuple[str, ...]] = ("*",)  # parameter name patterns; a recipe may say otherwise
    joins: ClassVar[bool] = True  # its processes form one process group

    @abstractmethod
    def build_task(self) -> "TrainTask[Any]":
        """Makes the model, batches and loss of this stage. Called on every rank, when running; may import torch."""

    @property
    def train(self) -> TrainConfig:
        """Returns what the recipe says about training."""
        train: TrainConfig = self.config.train
        return train

    def learning(self) -> tuple[str, ...]:
        """Returns the patterns of the parameters that learn. Asked when running."""
        return self.train.trainable or self.trainable

    def steps(self) -> int | None:
        """Returns the number of optimizer steps."""
        return self.train.steps

    def faults(self) -> Mapping[str, str]:
        """Finds weights of sources that are no input, and mixtures that draw nothing."""
        shards: dict[str, Shards] = self.inputs.shards
        known, mixture = f"allowed: {', '.join(shards)}", self.config.mixture
        found = {
            f"config.mixture.{name}": f"no such entry under inputs.shards; {known}"
            for name in mixture
            if name not in shards
        }
        found |= {
            f"config.mixture.{name}": "a weight must be above 0" for name, weight in mixture.items() if not weight > 0
        }
        if mixture and (unnamed := [name for name in shards if name not in mixture]):
            found["config.mixture"] = f"must weigh every entry of inputs.shards or none; missing: {', '.join(unnamed)}"
        if not shards:
            found["inputs.shards"] = "training needs at least one entry"
        return found

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Trains, and makes the last checkpoint the output. Collective: every rank must call."""
        from orchestrator.data.stream import SampleStream
        from orchestrator.training.checkpoints import CHECKPOINTS, Checkpoints
        from orchestrator.training.engine import make_engine
        from orchestrator.training.loop import fit

        train, world, output = self.train, context.world, self.outputs.model
        shards: dict[str, Shards] = self.inputs.shards
        stream = SampleStream(
            {name: entry.path for name, entry in shards.items()},
            weights=self.config.mixture,
            seed=context.seed,
            global_batch=train.global_batch,
            micro_batch=train.micro_batch_on(world.size),
            world_rank=world.rank,
            world_size=world.size,
            workers=train.workers,
            prefetch=train.prefetch,
            worker_timeout_s=train.worker_timeout_s,
        )
        task = self.build_task()
        checkpoints = Checkpoints(
            context.directory / CHECKPOINTS,
            fingerprint=context.fingerprint,
            train=train,
            seed=context.seed,
            world=world,
        )
        engine = make_engine(task, train, trainable=self.learning(), world=world, seed=context.seed)
        step = fit(task, engine, stream, train=train, checkpoints=checkpoints, context=context)
        assert isinstance(output, Checkpoint)  # noqa: S101 - planning has checked the kinds
        return {"model": checkpoints.promote(output, step, task.describe(), task.extras())}
