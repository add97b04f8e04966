"""The stages of GLaMM: tokenizer, words, alignment, regions, GranD, grounded captions, Pix2Cap. Imports no torch."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.artifacts import Checkpoint, Export, Shards, Tokenizer
from orchestrator.records import record
from orchestrator.training.config import TrainConfig
from orchestrator.training.stage import TrainingStage
from stages.adapters import LoraConfig
from stages.glamm.beginnings import model_faults
from stages.glamm.caching import ReadsFeatures
from stages.glamm.config import GlammConfig
from stages.glamm.conversations import KINDS
from stages.glamm.foresight import WORDS, Asked, ForeseenStage
from stages.glamm.learning import usual
from stages.inputs import TrainedModel, task_faults
from stages.point_rule import PointRule
from stages.tokenizing import TokenizerStage, check_sizes

if TYPE_CHECKING:
    from stages.glamm.task import GlammTask
    from stages.glamm.words import WordsTask


class GlammTokenizer(TokenizerStage):
    """Learns a small tokenizer from the texts of shards and from GLaMM's own prompts."""

    @record
    class Config:
        """How large, and from how much."""

        vocabulary_size: int = 1000  # the 256 bytes and the special tokens included
        samples: int = 2000  # read from each input
        wordings: int | None = 3  # of each bank of questions, whose words become tokens whole; null = all

        def __post_init__(self) -> None:
            """Checks ranges."""
            if self.wordings is not None and self.wordings < 1:
                raise ValueError(f"wordings must be above 0, or null for all, not {self.wordings}")
            check_sizes(self.vocabulary_size, self.samples)

    def learn(self, shards: Mapping[str, Path], folder: Path) -> Mapping[str, Any]:
        """Writes the tokenizer; returns facts."""
        from stages.glamm.corpus import learn_tokenizer

        return learn_tokenizer(self.config, shards, folder)


class GlammStage(ReadsFeatures):
    """What the training stages share: sources of a kind each, a model that begins or goes on, losses."""

    measures = True
    packs = True
    kind: ClassVar[str | None] = None  # what a source is unless config.tasks says otherwise; None = tasks must say

    @record
    class Config:
        """How to train, on what, and with which adapters."""

        train: TrainConfig
        model: GlammConfig | None = None  # what a model that begins here is made of; null: inputs.model goes on
        mixture: dict[str, float] = field(default_factory=dict)  # input -> weight; empty = equal
        # input -> caption, region, region_group, gcg, region_mask, referring or semantic
        tasks: dict[str, str] = field(default_factory=dict)
        lora: LoraConfig | None = None  # beside inputs.model, null: as it has them; a model begun here: model.lora
        text_weight: float = 1.0
        bce_weight: float = 2.0
        dice_weight: float = 0.5
        mask_side_px: int | None = None  # masks are compared at this longest side; null: at their image's own size
        mask_points: PointRule | None = None  # at so many points, most where a guess is unsure; null: at every pixel
        max_regions: int = 10  # of one image, asked about by their boxes
        max_targets: int = 3  # classes or expressions of one image, to be segmented
        wordings: int | None = None  # of each bank of questions or answers, the first ones; null = all
        features: bool = False  # inputs.shards are of glamm_features: the frozen image encoders do not run

        def __post_init__(self) -> None:
            """Checks ranges."""
            for name in ("mask_side_px", "max_regions", "max_targets", "wordings"):
                value = getattr(self, name)
                if value is not None and value < 1:
                    raise ValueError(f"{name} must be above 0, not {value}")
            side, points = self.mask_side_px, self.mask_points
            if side is not None and points is not None and points.count > side * side:
                raise ValueError(
                    f"mask_points.count: {points.count} points of masks that mask_side_px: {side} leaves at most "
                    f"{side * side} pixels; allowed: so many or fewer, or null"
                )

    @record
    class Inputs:
        """What is learnt from; a model that has begun, or else a tokenizer where the language model brings none."""

        shards: dict[str, Shards]
        tokenizer: Tokenizer | None = None
        vision: Export | None = None  # a CLOC, whose image encoder a model that begins here takes
        model: Checkpoint | None = None

    Outputs = TrainedModel

    def faults(self) -> Mapping[str, str]:
        """Finds no model or two, model folders that are not there, and sources without a task or with a strange one."""
        found = {
            **super().faults(),
            **task_faults(self.inputs.shards, self.config.tasks, self.kind, KINDS),
            **self.features_faults(),
        }
        inputs = self.inputs
        found |= model_faults(self.config.model, inputs.tokenizer, inputs.model, inputs.vision)
        if self.config.model is not None and inputs.model is None and self.config.lora is not None:
            found["config.lora"] = "adds adapters to inputs.model; say config.model.lora here"
        return found

    @property
    def kinds(self) -> dict[str, str]:
        """Says what each source is, as far as anything says so."""
        kinds = {name: self.config.tasks.get(name, self.kind) for name in self.inputs.shards}
        return {name: kind for name, kind in kinds.items() if kind is not None}

    def learning(self) -> tuple[str, ...]:
        """Leaves out patterns of adapters where the model has none."""
        return self.train.trainable or usual(self.trainable, adapters=self.has_adapters())

    def parts(self) -> GlammConfig | None:
        """Returns those of the config, if it has any."""
        parts: GlammConfig | None = self.config.model
        return parts

    def has_adapters(self) -> bool:
        """Tells whether the model has low-rank adapters. Asked when running: the checkpoint must be there."""
        parts = self.parts()
        if parts is not None:
            return parts.lora is not None
        return self.config.lora is not None or self.inputs.model.facts()["model"]["lora"] is not None

    def asked(self) -> Asked:
        """Returns the kinds of its sources, and how much of an image is asked about at most."""
        config = self.config
        return Asked(kinds=self.kinds.values(), max_regions=config.max_regions, max_targets=config.max_targets)

    def build_task(self) -> "GlammTask":
        """Begins with fresh or pretrained parts, or goes on from a checkpoint."""
        from stages.glamm.begin import begin_fresh, begin_from_checkpoint

        model = self.parts()
        if model is not None:
            return begin_fresh(self.config, model, self.kinds, self.inputs)
        return begin_from_checkpoint(self.config, self.kinds, self.inputs.model)


class WordPretraining(ForeseenStage, TrainingStage):
    """Teaches a fresh image encoder which words belong to what it sees, off its patches, before any sentence.

    A full-size run needs none of it: its CLIP comes trained. See `words.py`.
    """

    trainable = ("vision_tower", "projector", "region_encoder", "language_model.lm_head", "language_model.model.norm")

    @record
    class Config:
        """The model to begin with, and how to train it."""

        train: TrainConfig
        model: GlammConfig = field(default_factory=GlammConfig)
        mixture: dict[str, float] = field(default_factory=dict)  # input -> weight; empty = equal
        max_regions: int = 10  # of one image

    @record
    class Inputs:
        """Described regions; a tokenizer where the language model brings none."""

        shards: dict[str, Shards]
        tokenizer: Tokenizer | None = None
        vision: Export | None = None  # a CLOC, whose image encoder the model takes

    Outputs = TrainedModel

    def faults(self) -> Mapping[str, str]:
        """Finds model folders that are not there, and a missing tokenizer."""
        found = model_faults(self.config.model, self.inputs.tokenizer, seeing=self.inputs.vision)
        return {**super().faults(), **found}

    def parts(self) -> GlammConfig:
        """Returns those of the config."""
        parts: GlammConfig = self.config.model
        return parts

    def asked(self) -> Asked:
        """Returns that words are asked for, of so many regions at most."""
        return Asked(kinds=(WORDS,), max_regions=self.config.max_regions)

    def build_task(self) -> "WordsTask":
        """Begins with fresh or pretrained parts."""
        from stages.glamm.begin import begin_with_words

        shards = [self.inputs.shards[name].path for name in sorted(self.inputs.shards)]
        return begin_with_words(self.config.model, self.inputs, shards, max_regions=self.config.max_regions)


class FeatureAlignment(GlammStage):
    """Teaches the projector to speak the language model's language, from short captions of whole images."""

    kind = "caption"
    trainable = ("projector",)


class RegionPretraining(GlammStage):
    """Teaches the region encoder what lies in a box; boxes come as prompts."""

    kind = "region"
    trainable = ("region_encoder", "projector", "language_model.*lora_*")


class GlammTuning(GlammStage):
    """Tunes on any mixture of tasks, each source its own: referring segmentation, region captions, all of them."""

    trainable: ClassVar[tuple[str, ...]] = (
        "language_model.*lora_*",
        "language_model.lm_head",
        "language_model.model.embed_tokens",
        "region_encoder",
        "prompt_projection",
        "sam.mask_decoder",
    )


class GrandPretraining(GlammTuning):
    """Teaches all tasks at once on GranD, before any fine-tuning: the projector still learns."""

    trainable = ("projector", *GlammTuning.trainable)


class GcgTuning(GlammTuning):
    """Teaches to write captions whose phrases carry masks (grounded conversation generation)."""

    kind = "gcg"


class Pix2CapSft(GlammTuning):
    """Fine-tunes on a caption for every panoptic segment, asked for by its box and answered with its mask."""

    kind = "region_mask"
