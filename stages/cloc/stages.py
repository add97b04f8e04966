"""The stage of CLOC: contrastive localised pre-training. Imports no torch."""

from collections.abc import Mapping
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError
from orchestrator.records import incidental, record
from orchestrator.resources import Resources, rank_count
from orchestrator.training.config import TrainConfig
from orchestrator.training.memory.sketch import Sketch
from orchestrator.training.stage import TrainingStage
from stages.cloc.config import FAMILY, Blueprint, ClocConfig, draw_blueprint, vocabulary_in
from stages.folders import read_settings
from stages.inputs import TrainedModel, TrainingInputs, beginning_faults

if TYPE_CHECKING:
    from stages.cloc.task import ClocTask

OPENER = "stages.cloc.sitting:open_sitting"
Facts = Mapping[str, Any]  # of a manifest


class ClocContrastive(TrainingStage):
    """Teaches a CLIP that boxes and words can prompt: images with captions, regions with phrases, words with boxes.

    A step contrasts its whole batch: every pair stands against those of all ranks. `chunk` says how many images a rank
    encodes at once; memory follows it, the result does not.
    """

    family = FAMILY

    @record
    class Config:
        """How to train, and what counts how much."""

        train: TrainConfig
        model: ClocConfig | None = None  # what a model that begins here is made of; null: inputs.model goes on
        mixture: dict[str, float] = field(default_factory=dict)  # input -> weight; empty = equal
        max_regions: int = 4  # of an image that take part in a step, drawn anew every epoch
        chunk: int | None = incidental(default=None)  # images a rank encodes at once; null = its share of a step
        region_weight: float = 1.0  # of regions and boxes, times the share of images in the batch that have any
        grounding_weight: float = 1.0  # of boxes beside regions
        conflict: float | None = 0.9  # phrases with a higher cosine are no negatives of each other; null = all are
        squared_boxes: bool = True  # squared distance of boxes; false: the distance. The paper's formula leaves it open

        def __post_init__(self) -> None:
            """Checks ranges."""
            for name in ("max_regions", "chunk"):
                value = getattr(self, name)
                if value is not None and value < 1:
                    raise ValueError(f"{name} must be above 0, not {value}")
            for name in ("region_weight", "grounding_weight"):
                if (value := getattr(self, name)) < 0:
                    raise ValueError(f"{name} must be 0 or more, not {value:g}")
            if self.conflict is not None and not 0 < self.conflict < 1:
                raise ValueError(f"conflict must lie between 0 and 1, or be null for none, not {self.conflict:g}")

    Inputs = TrainingInputs
    Outputs = TrainedModel

    def faults(self) -> Mapping[str, str]:
        """Finds no model or two, no tokenizer or two, folders that are not there, and what would split a contrast."""
        found = {**super().faults(), **self._model_faults()}
        train: TrainConfig = self.config.train
        if train.micro_batch is not None:
            found["config.train.micro_batch"] = (
                "a step's batch is contrasted whole; allowed: null. config.chunk says how many images are encoded at "
                "once, with the same result"
            )
        if train.engine.tensor_parallel > 1:
            found["config.train.engine.tensor_parallel"] = "ranks would contrast the same images; allowed: 1"
        return found

    def faults_on(self, resources: Resources) -> Mapping[str, str]:
        """Finds a batch that does not divide over the ranks, or a rank's share that does not divide into chunks."""
        faults, train = dict(super().faults_on(resources)), replace(self.train, micro_batch=self.config.chunk)
        try:
            train.micro_batch_on(resources.nodes * rank_count(resources))
        except InputError as error:
            key, _, message = str(error).partition(": ")
            faults["config.chunk" if key == "train.micro_batch" else f"config.{key}"] = message
        return faults

    def outside(self) -> Mapping[str, str]:
        """Watches the files of the folders that the config names."""
        return {} if self.config.model is None else self.config.model.stamps()

    def code_roots(self) -> tuple[str, ...]:
        """Names the code that planning does not import."""
        return ("stages.cloc.task",)

    def foresee(self, inputs: Mapping[str, Facts]) -> Mapping[str, Facts]:
        """Says what model there will be."""
        blueprint = self.blueprint(inputs)
        return {} if blueprint is None else {"model": {"family": FAMILY, "model": blueprint.to_plain()}}

    def sketch(self, inputs: Mapping[str, Facts]) -> Sketch | None:
        """Describes the model, and the images that a rank encodes at once."""
        blueprint, config = self.blueprint(inputs), self.config
        if blueprint is None:
            return None
        return Sketch(
            opener=OPENER,
            plain={"model": blueprint.to_plain(), "regions": config.max_regions},
            learning=self.train.trainable or self.trainable,
            train=replace(self.train, micro_batch=config.chunk),
        )

    def blueprint(self, inputs: Mapping[str, Facts]) -> Blueprint | None:
        """Draws the model from the facts of its inputs; None while nobody knows them."""
        model: ClocConfig | None = self.config.model
        if model is None:
            facts = inputs.get("model", {})
            return Blueprint.from_plain(facts["model"]) if facts.get("family") == FAMILY else None
        if model.faults():
            return None
        size = inputs.get("tokenizer", {}).get("tokens")
        folder = model.tokenizer_folder()
        if size is None and folder is not None:
            size = vocabulary_in(folder)
            if size is None and folder == model.path:  # its tokenizer is in an older form
                size = read_settings(folder)["text_config"].get("vocab_size")
        return draw_blueprint(model, size) if isinstance(size, int) else None

    def build_task(self) -> "ClocTask":
        """Begins with a CLIP's towers or with nothing, or goes on from a checkpoint."""
        from stages.cloc.begin import begin_fresh, begin_from_checkpoint

        model: ClocConfig | None = self.config.model
        if model is not None:
            return begin_fresh(self.config, model, self.inputs.tokenizer)
        return begin_from_checkpoint(self.config, self.inputs.model)

    def _model_faults(self) -> dict[str, str]:
        model, tokenizer = self.config.model, self.inputs.tokenizer
        found = beginning_faults(model, tokenizer, self.inputs.model)
        if model is None or self.inputs.model is not None:
            return found
        named = model.tokenizer_folder()
        if tokenizer is None and named is None:
            found["inputs.tokenizer"] = "needed, because config.model names no folder with a tokenizer"
        if tokenizer is not None and model.tokenizer is not None:
            found["inputs.tokenizer"] = "config.model.tokenizer names another one; remove one of the two"
        return found
