"""What differs between two training stages: a model, how samples become a batch, and a loss."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn

from orchestrator.data.stream import Drawn
from orchestrator.records import record

Batch = TypeVar("Batch")


@record
class Losses:
    """What a step minimises, and the terms it is made of."""

    total: Tensor  # scalar, with graph
    terms: Mapping[str, Tensor]  # scalars for the log, detached; every rank must give the same names


@record
class Uneven:
    """A part of the model that some batches run more often than others, or not at all."""

    module: str  # its name in the model
    before: str | None = None  # the module that every rank runs next; null = nothing more of the model


class TrainTask(ABC, Generic[Batch]):
    """All that differs between two training stages."""

    uneven: ClassVar[Sequence[Uneven]] = ()  # what `runs` speaks of, in the order in which the model runs them
    cut_logits: ClassVar[bool] = False  # its loss takes shares of them (`parallel.losses`); else they are gathered
    leaf_modules: ClassVar[Sequence[str]] = ()  # names or classes of modules that ZeRO-3 gathers as one, e.g. experts
    blocks: ClassVar[
        Sequence[str]
    ] = ()  # the same of what `engine.compile` compiles, each alone; none: the whole model

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Builds the model with fresh weights. Runs in the engine's init context (ZeRO-3 partitions as it builds)."""

    def load_weights(self, model: nn.Module) -> None:
        """Fills the model from what the task starts from (pretrained weights). Collective: every rank must call."""

    @abstractmethod
    def collate(self, drawn: Sequence[Drawn]) -> Batch:
        """Turns samples into a batch on the CPU. Runs in data workers; must not touch the model.

        They are of one source, unless the recipe lets sources mix within a step. With packing, samples of one place
        belong in one sequence.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        """Computes the loss. `model` is the wrapped one: call it once, never a part of it or self.model."""

    def runs(self, batch: Batch) -> Mapping[str, int]:
        """Says how often a batch runs the parts in `uneven`: module -> runs. Ranks with fewer make up for it."""
        del batch
        return {}

    def tokens_of(self, batch: Batch) -> int:
        """Counts the tokens that a batch, as collated, puts through the model, for the log; 0 = it has none."""
        del batch
        return 0

    def length_of(self, source: str, key: str, members: Mapping[str, bytes]) -> int:
        """Measures a sample for packs and buckets, e.g. in tokens; 0 = leave it out. Asked only where recipes use them.

        A stage whose task has this says so: `TrainingStage.measures`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not measure samples, such as {key} of {source}")

    def describe(self) -> Mapping[str, Any]:
        """Returns facts for the checkpoint's manifest: `family`, `model` (config as plain data)."""
        return {}

    def extras(self) -> Mapping[str, bytes]:
        """Returns files that belong beside the weights, e.g. a tokenizer: path in the checkpoint -> content."""
        return {}
