"""The stages of PixelLLM: captions, words with places, referring, dense captioning, all of them. Imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.records import record
from orchestrator.training.config import TrainConfig
from orchestrator.training.memory.sketch import Sketch
from orchestrator.training.stage import TrainingStage
from stages.folders import read_settings, stamps_of
from stages.inputs import TrainedModel, TrainingInputs, beginning_faults, task_faults
from stages.pixelllm.config import (
    FAMILY,
    SAM_KINDS,
    Blueprint,
    DetectorConfig,
    MaskConfig,
    PixelLLMConfig,
    draw_blueprint,
    drawing_masks,
    model_fault,
)
from stages.pixelllm.foresight import OPENER, Most, largest
from stages.pixelllm.kinds import CAPTION, DENSE, KINDS, REFER, SEGMENT, TRACE

if TYPE_CHECKING:
    from stages.pixelllm.task import PixelLLMTask

Facts = Mapping[str, Any]  # of a manifest


class PixelLLMStage(TrainingStage):
    """What the training stages share: sources of a kind each, a model that begins or goes on, weights of the losses."""

    family = FAMILY
    kind: ClassVar[str | None] = None  # what a source is unless config.tasks says otherwise; None = tasks must say
    # published: SAM, the prompt encoder and all of T5 but its adapters stay as they are
    trainable: ClassVar[tuple[str, ...]] = ("semantic", "extractor", "projection", "language.*lora_*", "location")

    @record
    class Config:
        """How to train, on what."""

        train: TrainConfig
        model: PixelLLMConfig | None = None  # what a model that begins here is made of; null: inputs.model goes on
        mixture: dict[str, float] = field(default_factory=dict)  # input -> weight; empty = equal
        tasks: dict[str, str] = field(default_factory=dict)  # input -> caption, trace, refer, segment, region or dense
        detector: DetectorConfig | None = None  # beside inputs.model: it learns to propose boxes, if it does not yet
        masks: MaskConfig | None = None  # beside inputs.model: it learns to draw masks, if it does not yet
        caption_weight: float = 1.0
        location_weight: float = 0.1  # of the mean error in px of the canvas
        detection_weight: float = 1.0  # of proposals, where the model makes some and a source shows all boxes
        mask_weight: float = 1.0  # of 20 x focal + Dice + squared error of scores, where a source shows masks
        label_smoothing: float = 0.1
        max_text_tokens: int = 128  # published: 40 for expressions and regions
        max_context_tokens: int = 32  # published: 8 or 32
        max_regions: int = 32  # of one image, described by their boxes
        max_expressions: int = 16  # of one image, pointed at
        augments: bool = False  # images are scaled, cut and mirrored as published for their kind of source
        wordings: int | None = None  # of each bank of requests, the first ones; null = all

        def __post_init__(self) -> None:
            """Checks ranges."""
            for name in ("max_text_tokens", "max_context_tokens", "max_regions", "max_expressions", "wordings"):
                value = getattr(self, name)
                if value is not None and value < 1:
                    raise ValueError(f"{name} must be above 0, not {value}")
            if not 0 <= self.label_smoothing < 1:
                raise ValueError(f"label_smoothing must lie in [0, 1), not {self.label_smoothing}")

    Inputs = TrainingInputs
    Outputs = TrainedModel

    def faults(self) -> Mapping[str, str]:
        """Finds no model or two, model folders that are not there, and sources without a task or with a strange one."""
        found = {**super().faults(), **task_faults(self.inputs.shards, self.config.tasks, self.kind, KINDS)}
        model, tokenizer = self.config.model, self.inputs.tokenizer
        found |= beginning_faults(model, tokenizer, self.inputs.model)
        if model is not None and self.inputs.model is None:
            if tokenizer is None and model.language.path is None:
                found["inputs.tokenizer"] = "needed, because config.model.language.path names no folder with one"
            if self.config.detector is not None:
                found["config.detector"] = "adds proposals to inputs.model; say config.model.detector here"
            if self.config.masks is not None:
                found["config.masks"] = "adds masks to inputs.model; say config.model.masks here"
        if self.config.masks is not None and (problem := model_fault(self.config.masks.path, SAM_KINDS[:1])):
            found["config.masks.path"] = problem
        return found

    def faults_given(self, inputs: Mapping[str, Facts]) -> Mapping[str, str]:
        """Lists parts that the model lacks for what its sources teach."""
        found, model = super().faults_given(inputs), self.blueprint(inputs)
        return found if model is None else {**found, **lacking_parts(model, self.kinds)}

    def outside(self) -> Mapping[str, str]:
        """Watches the files of the model folders."""
        found = {} if self.config.model is None else self.config.model.stamps()
        return found if self.config.masks is None else {**found, **stamps_of([self.config.masks.path])}

    def code_roots(self) -> tuple[str, ...]:
        """Names the code that planning does not import."""
        return ("stages.pixelllm.begin",)

    def foresee(self, inputs: Mapping[str, Facts]) -> Mapping[str, Facts]:
        """Says what model there will be."""
        model = self.blueprint(inputs)
        return {} if model is None else {"model": {"family": FAMILY, "model": model.to_plain()}}

    def sketch(self, inputs: Mapping[str, Facts]) -> Sketch | None:
        """Describes the model, and the largest micro-batch that its sources may bring."""
        model, config = self.blueprint(inputs), self.config
        if model is None:
            return None
        most = Most(
            regions=config.max_regions, expressions=config.max_expressions, context=config.max_context_tokens,
            text=config.max_text_tokens,
        )  # fmt: skip
        return Sketch(
            opener=OPENER,
            plain={"model": model.to_plain(), "batch": asdict(largest(set(self.kinds.values()), most))},
            learning=self._usual(adapters=model.lora is not None, proposes=model.detector is not None),
            train=self.train,
        )

    def blueprint(self, inputs: Mapping[str, Facts]) -> Blueprint | None:
        """Draws the model from the facts of its inputs; None while nobody knows them."""
        config = self.config.model
        if config is None:
            facts = inputs.get("model")
            if not facts or facts.get("family") != FAMILY:
                return None
            return with_parts(Blueprint.from_plain(facts["model"]), self.config)
        tokens = inputs.get("tokenizer", {}).get("tokens")
        if tokens is None and config.language.path is not None:
            tokens = read_settings(config.language.path)["vocab_size"]
        return draw_blueprint(config, tokens) if isinstance(tokens, int) else None

    def learning(self) -> tuple[str, ...]:
        """Returns the recipe's patterns, or else those of the parts that the model has. Asked when running."""
        begun = self.config.model
        if begun is not None:
            return self._usual(adapters=begun.lora is not None, proposes=begun.detector is not None)
        known = self.inputs.model.facts()["model"]
        proposes = bool(known["detector"] or self.config.detector)
        return self._usual(adapters=known["lora"] is not None, proposes=proposes)

    @property
    def kinds(self) -> dict[str, str]:
        """Says what each source is, as far as anything says so."""
        kinds = {name: self.config.tasks.get(name, self.kind) for name in self.inputs.shards}
        return {name: kind for name, kind in kinds.items() if kind is not None}

    def build_task(self) -> "PixelLLMTask":
        """Begins with fresh or pretrained parts, or goes on from a checkpoint."""
        from stages.pixelllm.begin import begin

        return begin(self.config, self.kinds, tokenizer=self.inputs.tokenizer, model=self.inputs.model)

    def _usual(self, *, adapters: bool, proposes: bool) -> tuple[str, ...]:
        """Lets a language model without adapters and a mask decoder without weights learn whole."""
        if self.train.trainable:
            return self.train.trainable
        masks = self.config.masks if self.config.model is None else self.config.model.masks
        whole = {} if adapters else {"language.*lora_*": "language"}
        if masks is not None and masks.path is None:
            whole["masks.adapter"] = "masks"
        return tuple(whole.get(name, name) for name in self.trainable if proposes or name != "detector")


def with_parts(blueprint: Blueprint, config: PixelLLMStage.Config) -> Blueprint:
    """Adds to a model what a stage gives it: proposals and masks, where it has none yet."""
    blueprint = replace(blueprint, detector=blueprint.detector or config.detector)
    return blueprint if config.masks is None or blueprint.mask_decoder else drawing_masks(blueprint, config.masks)


class CaptionPretraining(PixelLLMStage):
    """Teaches the way from the image encoders to the language model, from captions of whole images.

    Published only as a checkpoint's name, its data (WebLI) private and its settings not told: ours are reasoned.
    """

    kind = CAPTION


class TraceTuning(PixelLLMStage):
    """Teaches where each word of a caption is, from Localized Narratives (words with the mouse's trace)."""

    kind = TRACE


class ReferringTuning(PixelLLMStage):
    """Teaches the box that an expression means: the place of its last token. Its words are read, not learnt."""

    kind = REFER


class ReferringMasks(PixelLLMStage):
    """Teaches the pixels that an expression means, and its box: SAM's mask decoder reads the box that the model says.

    Published: only the adapter before the decoder, at ten times the rate, and the head that says places learn.
    """

    kind = SEGMENT
    trainable: ClassVar[tuple[str, ...]] = ("masks.adapter", "location")


class DenseCaptioning(PixelLLMStage):
    """Teaches to propose boxes of everything that can be described, and to describe each (also boxes that are given).

    Published: no location head. Here it stays and its loss weighs nothing, so that the model can still say places.
    """

    kind = DENSE
    trainable: ClassVar[tuple[str, ...]] = ("semantic", "extractor", "projection", "language.*lora_*", "detector")


class JointTuning(PixelLLMStage):
    """Teaches everything at once, each source its own task."""

    trainable: ClassVar[tuple[str, ...]] = (*PixelLLMStage.trainable, "detector")


def lacking_parts(blueprint: Blueprint, kinds: Mapping[str, str]) -> dict[str, str]:
    """Finds what sources teach and the model has no part for: dotted key below the stage -> message."""
    found = {}
    if DENSE in kinds.values() and blueprint.detector is None:
        found["config.detector"] = "a source teaches dense, but the model proposes no boxes; give it a detector"
    if SEGMENT in kinds.values() and blueprint.mask_decoder is None:
        found["config.masks"] = "a source teaches segment, but the model draws no masks; say how it should"
    return found
