"""PixClipContrastive: masked images and long texts into one space. Imports no torch."""

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from orchestrator.records import incidental, record
from orchestrator.training.config import TrainConfig
from orchestrator.training.memory.sketch import Sketch
from orchestrator.training.stage import TrainingStage
from stages.inputs import TrainedModel, TrainingInputs, beginning_faults
from stages.pixclip.config import FAMILY, TEXTS_FACT, Blueprint, PixClipConfig, draw_blueprint

if TYPE_CHECKING:
    from stages.pixclip.task import PixClipTask

# which parts learn in PixCLIP's training is unverified; its path names speak of rates for image tower and projection
LEARNING = ("vision_model", "visual_projection", "text_model", "text_adapter", "logit_scale")


class PixClipContrastive(TrainingStage):
    """Contrasts what a mask shows of an image with the long text about it, over the batches of all ranks.

    Three branches: the whole image through the mask with the text; a crop around the region with the same text; what is
    pooled from the whole image's patches in the region's box, with the crop. That there are three, and what each is
    for, is published; what stands against what, the weights and one temperature for all are unverified: keys here.
    """

    family = FAMILY
    trainable: ClassVar[tuple[str, ...]] = LEARNING

    @record
    class Config:
        """How to train, on what, and how much each branch counts."""

        train: TrainConfig
        model: PixClipConfig | None = None  # what a model that begins here is made of; null: inputs.model goes on
        mixture: dict[str, float] = field(default_factory=dict)  # input -> weight; empty = equal
        masked_weight: float = 1.0  # the whole image through the mask, with the text; unverified, as the next two
        crop_weight: float = 1.0  # the crop, with the text
        roi_weight: float = 1.0  # patches of the whole image in the region's box, with what roi_against says
        roi_against: Literal["crop", "masked", "text"] = "crop"  # unverified: "the mask or crop embedding"
        crop_scale: float = 1.5  # side of the crop in longer sides of the region's box, as in the release's evaluation
        # of samples with a caption: how often the whole image, all masked, with it; 0.1 is Alpha-CLIP's
        whole_share: float = 0.1
        # texts with a higher cosine are no negatives of each other (CLOC takes 0.9); null: all are, as published
        conflict_cosine: float | None = None
        images_at_once: int | None = incidental(default=None)  # computed together, and again on the way back; null: all

        def __post_init__(self) -> None:
            """Checks ranges."""
            weights = (self.masked_weight, self.crop_weight, self.roi_weight)
            if min(weights) < 0 or not any(weights):
                raise ValueError("masked_weight, crop_weight and roi_weight must be 0 or more, and one of them above 0")
            if self.crop_scale < 1:
                raise ValueError(f"crop_scale must be 1 or more, not {self.crop_scale}")
            if not 0 <= self.whole_share <= 1:
                raise ValueError(f"whole_share must lie in [0, 1], not {self.whole_share}")
            if self.conflict_cosine is not None and not 0 < self.conflict_cosine <= 1:
                raise ValueError(f"conflict_cosine must lie in (0, 1], or be null, not {self.conflict_cosine}")
            if self.images_at_once is not None and self.images_at_once < 1:
                raise ValueError(f"images_at_once must be above 0, or null, not {self.images_at_once}")

    Inputs = TrainingInputs
    Outputs = TrainedModel

    def faults(self) -> Mapping[str, str]:
        """Finds no model or two, model folders that are not there, a tokenizer too many or too few."""
        found = dict(super().faults())
        model, tokenizer = self.config.model, self.inputs.tokenizer
        found |= beginning_faults(model, tokenizer, self.inputs.model)
        begins = model is not None and self.inputs.model is None
        if begins and (model.text is None) != (tokenizer is None):
            strange = "is not read: config.model.text is null, so texts come embedded; remove one of the two"
            found["inputs.tokenizer"] = "needed by config.model.text" if tokenizer is None else strange
        return found

    def learning(self) -> tuple[str, ...]:
        """Leaves out patterns of what the model does not have. Asked when running."""
        if self.train.trainable:
            return self.train.trainable
        if self.config.model is not None:
            text, learns = self.config.model.text is not None, self.config.model.scale.learns
        else:
            known = self.inputs.model.facts()["model"]
            text, learns = known["text"] is not None, known["scale"]["learns"]
        return usual(text=text, learns=learns)

    def blueprint(self, inputs: Mapping[str, Mapping[str, Any]]) -> Blueprint | None:
        """Draws the model from the facts of its inputs; None while nobody knows them."""
        model = self.config.model
        if model is None:
            facts = inputs.get("model", {})
            return Blueprint.from_plain(facts["model"]) if facts.get("family") == FAMILY else None
        tokens = inputs.get("tokenizer", {}).get("tokens")
        embedded = [facts[TEXTS_FACT] for facts in inputs.values() if facts.get(TEXTS_FACT, {}).get("size")]
        if model.faults() or (tokens is None if model.text is not None else not embedded):
            return None
        return draw_blueprint(model, vocabulary_size=tokens, encoder=embedded[0] if embedded else None)

    def foresee(self, inputs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        """Says what model there will be."""
        model = self.blueprint(inputs)
        return {} if model is None else {"model": {"family": FAMILY, "model": model.to_plain()}}

    def sketch(self, inputs: Mapping[str, Mapping[str, Any]]) -> Sketch | None:
        """Describes the model, and a micro-batch with crops, if any branch looks at them, and the longest texts."""
        model = self.blueprint(inputs)
        if model is None:
            return None
        config = self.config
        crops = config.crop_weight > 0 or (config.roi_weight > 0 and config.roi_against == "crop")
        return Sketch(
            opener="stages.pixclip.sitting:open_sitting",
            plain={"model": model.to_plain(), "crops": crops, "images_at_once": config.images_at_once},
            learning=self.train.trainable or usual(text=model.text is not None, learns=model.scale.learns),
            train=self.train,
        )

    def outside(self) -> Mapping[str, str]:
        """Watches the files of the model folders."""
        return {} if self.config.model is None else self.config.model.stamps()

    def code_roots(self) -> tuple[str, ...]:
        """Names the code that planning does not import."""
        return ("stages.pixclip.begin",)

    def build_task(self) -> "PixClipTask":
        """Begins with fresh or published parts, or goes on from a checkpoint."""
        from stages.pixclip.begin import begin_fresh, begin_from_checkpoint

        if self.config.model is not None:
            return begin_fresh(self.config, self.config.model, self.inputs.shards, self.inputs.tokenizer)
        return begin_from_checkpoint(self.config, self.inputs.shards, self.inputs.model)


def usual(*, text: bool, learns: bool) -> tuple[str, ...]:
    """Returns the patterns of what learns where the recipe does not say, of what a model has."""
    lacks = {"text_model": not text, "logit_scale": not learns}
    return tuple(pattern for pattern in LEARNING if not lacks.get(pattern, False))
