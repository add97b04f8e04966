"""A stage that trains: everything but its model, its batches and its loss. Imports torch only when it runs."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.artifacts import Artifact, Checkpoint, Shards
from orchestrator.data.mixture import mixture_faults
from orchestrator.errors import InputError
from orchestrator.resources import Resources, rank_count
from orchestrator.stage import Stage, StageContext
from orchestrator.training.config import TrainConfig
from orchestrator.training.options import option_faults
from orchestrator.training.parallel.plans import why_not

if TYPE_CHECKING:
    from orchestrator.training.task import TrainTask

# what the data plane finds wrong -> where a recipe says it
_BELOW = {"mixture": "config.", "order": "config.train.", "global_batch": "config.train.", "shards": "inputs."}


class TrainingStage(Stage):
    """A stage whose run is the training loop.

    Its Config has `train: TrainConfig` and `mixture: dict[str, float]` (name of an input -> weight; empty = equal), its
    Inputs have `shards: dict[str, Shards]`, its Outputs have `model: Checkpoint`.
    """

    trainable: ClassVar[tuple[str, ...]] = ("*",)  # parameter name patterns; a recipe may say otherwise
    measures: ClassVar[bool] = False  # its task has `length_of`, so that recipes may sort samples into buckets
    packs: ClassVar[bool] = False  # it measures, and its task collates the samples of one place into one sequence
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
        """Finds mixtures and orders that do not fit the inputs, that draw nothing, or that end before training does."""
        train, mixture = self.train, self.config.mixture
        sizes = {name: self._samples(shards) for name, shards in self.inputs.shards.items()}
        faults = mixture_faults(sizes, mixture, train.global_batch, train.order)
        found = {_BELOW[key.partition(".")[0]] + key: message for key, message in faults.items()}
        if train.order.pack is not None and not self.packs:
            found["config.train.order.pack"] = (
                "this stage does not put several samples into one sequence; allowed: null"
            )
        if train.order.bucket is not None and not self.measures:
            found["config.train.order.bucket"] = "this stage does not measure its samples; allowed: null"
        if problem := self._why_not_cut():
            found["config.train.engine.tensor_parallel"] = problem
        known = {name: size for name, size in sizes.items() if size is not None}
        if not found and train.order.max_epochs and known == sizes and not train.order.units:
            found |= _end_of_data(known, mixture, train)
        return found

    def faults_on(self, resources: Resources) -> Mapping[str, str]:
        """Finds options of the engine, the optimizer and the policies that cannot be had, or not on such nodes."""
        found = option_faults(self.train, on_gpus=resources.gpus_per_node > 0)
        faults = {f"config.train.{key}": message for key, message in found.items()}
        if self.train.engine.tensor_parallel > 1:
            try:
                self.train.micro_batch_on(resources.nodes * rank_count(resources))
            except InputError as error:
                key, _, message = str(error).partition(": ")
                faults[f"config.{key}"] = message
        return faults

    def faults_given(self, inputs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, str]:
        """Finds a checkpoint of another family than the one that learns here."""
        given = inputs.get("model", {}).get("family", self.family)
        if self.family is None or given == self.family:
            return {}
        return {"inputs.model": f"is of the family {given!r}; allowed: {self.family}"}

    def language_model(self) -> tuple[str, Mapping[str, Any]] | None:
        """Returns class and settings of the language model that `tensor_parallel` cuts; None where nobody knows yet."""
        return None

    def settled(self, artifact: Artifact) -> bool:
        """Tells whether an input is there to be looked at; what this run makes, it may yet make anew."""
        run = self.outputs.model.path.parent.parent
        return run not in artifact.path.parents and artifact.ready()

    def _why_not_cut(self) -> str:
        degree = self.train.engine.tensor_parallel
        known = self.language_model() if degree > 1 else None
        return "" if known is None else why_not(*known, degree)

    def _samples(self, shards: Shards) -> int | None:
        """Counts the samples of an input; None while nobody knows."""
        samples = shards.facts().get("samples") if self.settled(shards) else None
        return samples if isinstance(samples, int) else None

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Trains, and makes the last checkpoint the output. Collective: every rank must call."""
        from orchestrator.data.stream import SampleStream
        from orchestrator.training.checkpoints import Checkpoints
        from orchestrator.training.engine import make_engine
        from orchestrator.training.loop import fit
        from orchestrator.training.retention import CHECKPOINTS
        from orchestrator.training.units import keep_order, plan_units

        train, world, output = self.train, context.world, self.outputs.model
        shards = {name: entry.path for name, entry in self.inputs.shards.items()}
        task = self.build_task()
        stream = SampleStream(
            shards,
            weights=self.config.mixture,
            rules=train.order,
            plans=plan_units(task, shards, train, context),
            seed=context.seed,
            global_batch=train.global_batch,
            micro_batch=train.micro_batch_on(world.size),
            world_rank=train.reader(world.rank),
            world_size=train.readers_on(world.size),
            workers=train.workers,
            prefetch=train.prefetch,
            remote=train.remote,
            worker_timeout_s=train.worker_timeout_s,
        )
        stream.order.require(train.steps)
        keep_order(stream.order.digest(), context)
        checkpoints = Checkpoints(
            context.directory / CHECKPOINTS,
            fingerprint=context.fingerprint,
            train=train,
            seed=context.seed,
            world=world,
            journal=context.journal,
        )
        engine = make_engine(task, train, trainable=self.learning(), world=world, seed=context.seed)
        step = fit(task, engine, stream, train=train, checkpoints=checkpoints, context=context)
        assert isinstance(output, Checkpoint)  # noqa: S101 - planning has checked the kinds
        write = engine.save_average if train.average is not None and train.average.export else None
        return {"model": checkpoints.promote(output, step, task.describe(), task.extras(), write=write)}


def _end_of_data(sizes: Mapping[str, int], mixture: Mapping[str, float], train: TrainConfig) -> dict[str, str]:
    from orchestrator.data.order import Order

    try:
        Order(0, sizes, mixture, train.global_batch, train.order).require(train.steps)
    except InputError as error:
        return {"config.train.order.max_epochs": str(error)}
    return {}
