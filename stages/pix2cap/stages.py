"""The training stage of Pix2Cap: its config, inputs and outputs. Imports no torch."""

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.artifacts import Checkpoint, Shards, Tokenizer
from orchestrator.records import record
from orchestrator.training.config import TrainConfig
from orchestrator.training.stage import TrainingStage
from stages.inputs import beginning_faults
from stages.pix2cap.config import FAMILY, AugmentConfig, LossConfig, Pix2CapConfig

if TYPE_CHECKING:
    from stages.pix2cap.task import Pix2CapTask


class Pix2CapTraining(TrainingStage):
    """Learns panoptic segments and a caption for each of them, together.

    What learns by default is what the release trains: the layers of the query decoder, what makes masks, classes and
    captions of queries. A model that begins without folders must let everything learn: train.trainable: ["*"].
    """

    trainable: ClassVar[tuple[str, ...]] = (
        "segmenter.transformer_module.decoder.layers",
        "segmenter.transformer_module.decoder.mask_predictor",
        "class_predictor",
        "captioner",
    )
    family = FAMILY

    @record
    class Config:
        """How to train, and what."""

        train: TrainConfig
        model: Pix2CapConfig | None = None  # what a model that begins here is made of; null: inputs.model goes on
        mixture: dict[str, float] = field(default_factory=dict)  # input -> weight; empty = equal
        losses: LossConfig = field(default_factory=LossConfig)
        augment: AugmentConfig = field(default_factory=AugmentConfig)

    @record
    class Inputs:
        """Panoptic shards with descriptions; a model that has begun, or a tokenizer where no folder brings one."""

        shards: dict[str, Shards]
        tokenizer: Tokenizer | None = None
        model: Checkpoint | None = None

    @record
    class Outputs:
        """The model, and the tokenizer beside its weights."""

        model: Checkpoint

    def faults(self) -> Mapping[str, str]:
        """Finds no model or two, folders that are not there, a missing tokenizer, shards without categories."""
        found = {**super().faults()}
        model, tokenizer = self.config.model, self.inputs.tokenizer
        found |= beginning_faults(model, tokenizer, self.inputs.model)
        begins = model is not None and self.inputs.model is None
        if begins and tokenizer is None and model.captioner.path is None:
            found["inputs.tokenizer"] = "needed, because config.model.captioner.path names no folder with one"
        for name, shards in self.inputs.shards.items():
            if self.settled(shards) and not shards.facts().get("categories"):
                found[f"inputs.shards.{name}"] = "lists no categories in its manifest; allowed: panoptic sources"
        return found

    def outside(self) -> Mapping[str, str]:
        """Watches the files of the model folders."""
        model = self.config.model
        return {} if model is None else model.stamps()

    def foresee(self, inputs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        """Says which family the model will be of."""
        del inputs
        return {"model": {"family": FAMILY}}

    def code_roots(self) -> tuple[str, ...]:
        """Names the code that planning does not import."""
        return ("stages.pix2cap.begin",)

    def build_task(self) -> "Pix2CapTask":
        """Begins with fresh or pretrained parts, or goes on from a checkpoint."""
        from stages.pix2cap.begin import begin_fresh, begin_from_checkpoint

        config, inputs = self.config, self.inputs
        if config.model is not None:
            return begin_fresh(config.model, inputs.tokenizer, inputs.shards, config.losses, config.augment)
        return begin_from_checkpoint(inputs.model, config.losses, config.augment)
