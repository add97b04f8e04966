"""The training stage of Pix2Cap: its config, inputs and outputs. Imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, field
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.records import record
from orchestrator.training.config import TrainConfig
from orchestrator.training.memory.sketch import Sketch
from orchestrator.training.stage import TrainingStage
from stages.folders import read_settings
from stages.inputs import TrainedModel, TrainingInputs, beginning_faults
from stages.pix2cap.config import (
    FAMILY,
    AugmentConfig,
    Blueprint,
    Category,
    LossConfig,
    Pix2CapConfig,
    draw_blueprint,
)

if TYPE_CHECKING:
    from stages.pix2cap.task import Pix2CapTask

SEGMENTS = 32  # that the planner of memory reckons with in every picture; COCO's have about eleven
CATEGORIES = 133  # the same, where the shards are not there yet: COCO's
Facts = Mapping[str, Any]  # of a manifest


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

    Inputs = TrainingInputs
    Outputs = TrainedModel

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

    def foresee(self, inputs: Mapping[str, Facts]) -> Mapping[str, Facts]:
        """Says which family the model will be of, and what model it will be once its classes are known."""
        model = self.blueprint(inputs, self.categories(inputs))
        return {"model": {"family": FAMILY, **({} if model is None else {"model": model.to_plain()})}}

    def sketch(self, inputs: Mapping[str, Facts]) -> Sketch | None:
        """Describes the model, and pictures with many segments whose captions are as long as they may be."""
        some = tuple(Category(id=number, name=str(number), thing=True) for number in range(CATEGORIES))
        model = self.blueprint(inputs, self.categories(inputs) or some)
        if model is None:
            return None
        return Sketch(
            opener="stages.pix2cap.sitting:open_sitting",
            plain={"model": model.to_plain(), "losses": asdict(self.config.losses), "segments": SEGMENTS},
            learning=self.train.trainable or self.trainable,
            train=self.train,
        )

    def categories(self, inputs: Mapping[str, Facts]) -> tuple[Category, ...]:
        """Reads the classes of the shards that are there; none while nobody knows them."""
        listed = (facts.get("categories") for name, facts in inputs.items() if name.startswith("shards."))
        return tuple(Category(**one) for one in next((found for found in listed if found), ()))

    def blueprint(self, inputs: Mapping[str, Facts], categories: tuple[Category, ...]) -> Blueprint | None:
        """Draws the model from the facts of its inputs and its classes; None while nobody knows them."""
        model = self.config.model
        if model is None:
            facts = inputs.get("model", {})
            known = facts.get("family") == FAMILY and "model" in facts
            return Blueprint.from_plain(facts["model"]) if known else None
        size = inputs.get("tokenizer", {}).get("tokens")
        if size is None and model.captioner.path is not None and not model.faults():
            size = read_settings(model.captioner.path).get("vocab_size")
        if size is None or not categories or model.faults():
            return None
        return draw_blueprint(model, size, categories)

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
