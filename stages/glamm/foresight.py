"""What a training stage of GLaMM begins with, and what it will be like before anything of it exists. No torch.

Nothing here decides what training computes: fingerprints leave this module out (`orchestrator.fingerprint.NEUTRAL`).
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

from orchestrator.data.rules import PackRule
from orchestrator.records import record
from orchestrator.training.memory.sketch import Sketch
from orchestrator.training.parallel.plans import share_of
from orchestrator.training.stage import TrainingStage
from stages.folders import read_settings
from stages.glamm.config import (
    FAMILY,
    LANGUAGE_MODEL,
    SPECIAL_TOKENS,
    Blueprint,
    GlammConfig,
    draw_blueprint,
    language_settings,
)
from stages.glamm.conversations import KINDS
from stages.glamm.learning import usual
from stages.point_rule import PointRule
from stages.promptable import Promptable, promptable_in

OPENER = "stages.glamm.sitting:open_sitting"
WORDS = "words"  # the kind of a source of which only words are read
IMAGE_PX = (640, 480)  # width and height of a photograph of COCO; masks are compared at this size
_SHORTEST_TEXT = 40  # tokens of a system text, a question and a short answer
Facts = Mapping[str, Any]  # of a manifest


@record
class BatchShape:
    """The most that each place of a micro-batch brings: a sample, or a pack of some."""

    tokens: int  # of the sequence, image tokens included
    predicted: int  # of these, what the assistant says
    boxes: int  # of each image
    masks: int  # of each image
    image_px: tuple[int, int] = IMAGE_PX  # width, height
    images: int = 1  # that share the sequence
    mask_side_px: int | None = None  # as in `Shortcuts`
    mask_points: PointRule | None = None
    features: bool = False


@record
class Shortcuts:
    """What a recipe may ask for to make steps smaller."""

    mask_side_px: int | None = None  # the longest side of the masks; None: as large as their image
    mask_points: PointRule | None = None  # where they are compared; None: at every pixel
    features: bool = False  # the frozen image encoders do not run: what they see is read


@record
class Asked:
    """What a stage asks about an image."""

    kinds: Collection[str]  # of its sources
    max_regions: int  # asked about by their boxes
    max_targets: int = 0  # to be segmented


class ForeseenStage(TrainingStage):
    """A training stage of GLaMM that knows what it will be like, once its model is known."""

    family = FAMILY

    @abstractmethod
    def parts(self) -> GlammConfig | None:
        """Returns what its model is begun with; None where it goes on from the checkpoint `inputs.model`."""

    @abstractmethod
    def asked(self) -> Asked:
        """Returns the kinds of its sources, and how much of an image is asked about at most."""

    def shortcuts(self) -> Shortcuts:
        """Returns how the recipe makes steps smaller: not at all, unless a stage knows how."""
        return Shortcuts()

    def model(self, inputs: Mapping[str, Facts]) -> Blueprint | None:
        """Draws the model from the facts of its inputs; None while nobody knows them."""
        parts = self.parts()
        if parts is not None:
            seeing = promptable_in(inputs.get("vision", {}).get("model"))
            if self.inputs.vision is not None and seeing is None:
                return None
            return fresh_blueprint(parts, inputs.get("tokenizer"), seeing)
        found = blueprint_in(inputs.get("model"))
        return found if found is None or self.config.lora is None else replace(found, lora=self.config.lora)

    def faults_given(self, inputs: Mapping[str, Facts]) -> Mapping[str, str]:
        """Finds a checkpoint of another family, and an image encoder that is to be a CLOC's and is none."""
        found, given = super().faults_given(inputs), inputs.get("vision", {})
        if "family" not in given or promptable_in(given.get("model")) is not None:
            return found
        told = f"is of the family {given['family']!r}, which has no Prompter; allowed: an export of a CLOC"
        return {**found, "inputs.vision": told}

    def language_model(self) -> tuple[str, Mapping[str, Any]] | None:
        """Reads the language model's settings off the config, a folder that it names, or a checkpoint that is there."""
        parts = self.parts()
        if parts is not None:
            return None if "language.path" in parts.faults() else (LANGUAGE_MODEL, language_settings(parts.language))
        settled = self.inputs.model is not None and self.settled(self.inputs.model)
        return (LANGUAGE_MODEL, self.inputs.model.facts()["model"]["language"]) if settled else None

    def outside(self) -> Mapping[str, str]:
        """Watches the files of the model folders."""
        parts = self.parts()
        return {} if parts is None else parts.stamps()

    def foresee(self, inputs: Mapping[str, Facts]) -> Mapping[str, Facts]:
        """Says what model there will be."""
        model = self.model(inputs)
        return {} if model is None else {"model": {"family": FAMILY, "model": model.to_plain()}}

    def sketch(self, inputs: Mapping[str, Facts]) -> Sketch | None:
        """Describes the model, and the longest micro-batch that its sources may bring."""
        model = self.model(inputs)
        if model is None:
            return None
        asked = self.asked()
        shape = packed(longest(model, asked), model, self.train.order.pack)
        short = self.shortcuts()
        shape = replace(shape, mask_side_px=short.mask_side_px, mask_points=short.mask_points, features=short.features)
        return Sketch(
            opener=OPENER,
            plain={
                "model": of_a_rank(model, self.train.engine.tensor_parallel).to_plain(),
                "batch": asdict(shape),
                "words": WORDS in asked.kinds,
            },
            learning=self.train.trainable or usual(self.trainable, adapters=model.lora is not None),
            train=self.train,
        )


def of_a_rank(blueprint: Blueprint, degree: int) -> Blueprint:
    """Returns a model as large as what a rank holds where `degree` ranks share the language model."""
    if degree == 1:
        return blueprint
    language = share_of(blueprint.language, degree)
    return replace(blueprint, language=language, vocabulary_size=language["vocab_size"])


def longest(blueprint: Blueprint, asked: Asked) -> BatchShape:
    """Takes the most of all kinds of sources: every sequence as long as it may be, and all of its text predicted."""
    kinds = [KINDS[name] for name in asked.kinds if name in KINDS]
    boxes = WORDS in asked.kinds or any(kind.boxes for kind in kinds)
    masks = [asked.max_targets if kind.targets else asked.max_regions for kind in kinds if kind.masks]
    return BatchShape(
        tokens=blueprint.max_tokens,
        predicted=max(1, blueprint.max_tokens - blueprint.num_image_tokens - 1),
        boxes=asked.max_regions if boxes else 0,
        masks=max(masks, default=0),
    )


def packed(shape: BatchShape, blueprint: Blueprint, rule: PackRule | None) -> BatchShape:
    """Takes as many conversations as may share a place, all short; or one long one, where that may stand alone."""
    if rule is None:
        return shape
    images = max(1, rule.budget // (blueprint.num_image_tokens + _SHORTEST_TEXT))
    tokens = max(rule.budget, shape.tokens) if rule.too_long == "alone" else rule.budget
    return replace(
        shape,
        tokens=tokens,
        predicted=max(1, tokens - images * (blueprint.num_image_tokens + 1)),
        images=images,
        boxes=max(0, min(shape.boxes, tokens // images - blueprint.num_image_tokens - 1)),
    )


def fresh_blueprint(model: GlammConfig, tokenizer: Facts | None, seeing: Promptable | None) -> Blueprint | None:
    """Draws the model of a config; None while nobody knows how many tokens it will have."""
    if tokenizer is not None:
        size = tokenizer.get("tokens")
    elif model.language.path is not None:
        size = read_settings(model.language.path)["vocab_size"] + len(SPECIAL_TOKENS)
    else:
        size = None
    return draw_blueprint(model, size, seeing) if isinstance(size, int) else None


def blueprint_in(facts: Facts | None) -> Blueprint | None:
    """Reads the model out of a checkpoint's facts, of today or foreseen."""
    if facts is None or facts.get("family") != FAMILY:
        return None
    return Blueprint.from_plain(facts["model"])
