"""What a Pix2Cap model is made of, from tiny to full size; imports no torch.

Defaults are the published sizes (arXiv 2501.13893 and its release, which builds on X-Decoder v2). The parts are those
of transformers: Mask2Former for the segments, GIT's text decoder for the captions; README.md says what differs.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.folders import folder_fault, read_settings, stamps_of
from stages.sizes import stack_settings

FAMILY = "pix2cap"  # what the manifests of its checkpoints say
SEGMENTER_TYPE, CAPTIONER_TYPE = "mask2former", "git"  # model_type of the folders that fill the parts
GROUPS = 32  # of the group norms in Mask2Former's pixel decoder
STRIDE = 32  # of the coarsest features: image sides are multiples of it


@record
class BackboneConfig:
    """The image encoder: the defaults are Focal-L, as published. A segmenter's folder brings its own."""

    kind: Literal["focalnet", "convnext"] = "focalnet"  # convnext: all features are of whole stages, stride 4 included
    embed_size: int = 192  # of the first stage; each next one has twice as much
    depths: tuple[int, ...] = (2, 2, 18, 2)
    focal_levels: int = 4  # of focalnet alone, and so is the window
    focal_window: int = 3
    drop_path: float = 0.3  # share of its layers left out at random; the last layer's, rising from 0 at the first

    def __post_init__(self) -> None:
        """Checks what cannot work."""
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise InputError(f"depths must name four stages of one layer or more, not {self.depths}")


@record
class SegmenterConfig:
    """Pixel decoder and query decoder (Mask2Former): a Hugging Face folder, or sizes to start from scratch."""

    path: Path | None = None  # e.g. mask2former-swin-large-coco-panoptic
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    width: int = 512  # of both decoders and of the mask features
    encoder_layers: int = 6  # of the pixel decoder
    encoder_mlp_size: int = 2048
    predictions: int = 10  # that are supervised: one of the queries themselves, one after each decoder layer
    heads: int = 8
    decoder_mlp_size: int = 2048
    queries: int = 200

    def __post_init__(self) -> None:
        """Checks what cannot work."""
        if self.width % GROUPS or self.width % self.heads:
            raise InputError(f"width must be a multiple of {GROUPS} and of heads ({self.heads}), not {self.width}")
        if self.predictions < 2 or self.queries < 1:
            raise InputError("predictions must be 2 or more, queries 1 or more")


@record
class CaptionerConfig:
    """The caption decoder (GIT's, BERT-sized): a Hugging Face folder, or sizes to start from scratch."""

    path: Path | None = None  # e.g. git-base, with a tokenizer
    hidden_size: int = 768
    layers: int = 6
    heads: int = 12
    mlp_size: int = 3072
    dropout: float = 0.1
    object_size: int = 256  # what the query's state and the image's vector are cut down to
    max_tokens: int = 40  # of a caption, its beginning and end included
    gradient_scale: float = 1 / 3  # of what captions teach the segmenter

    def __post_init__(self) -> None:
        """Checks what cannot work."""
        if self.hidden_size % self.heads:
            raise InputError(f"hidden_size must be a multiple of heads ({self.heads}), not {self.hidden_size}")
        if self.max_tokens < 3:
            raise InputError(f"max_tokens must be 3 or more (beginning, one word, end), not {self.max_tokens}")


@record
class Pix2CapConfig:
    """A whole model, as a recipe asks for it."""

    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    captioner: CaptionerConfig = field(default_factory=CaptionerConfig)
    image_px: int = 1024  # side of the square that is read
    least_score: float = 0.8  # of a segment's class: below, it is not given
    least_overlap: float = 0.8  # of a segment's pixels that no other takes: below, it is not given

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.image_px < 2 * STRIDE or self.image_px % STRIDE:  # one coarsest feature has no spread to normalise
            raise InputError(f"image_px must be a multiple of {STRIDE}, {2 * STRIDE} or more, not {self.image_px}")
        for name in ("least_score", "least_overlap"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must lie in [0, 1), not {getattr(self, name)}")

    def faults(self) -> dict[str, str]:
        """Names the folders that are not there, or that hold something else: key -> message."""
        wanted = {
            "segmenter.path": (self.segmenter.path, SEGMENTER_TYPE),
            "captioner.path": (self.captioner.path, CAPTIONER_TYPE),
        }
        found = {}
        for key, (path, kind) in wanted.items():
            if fault := folder_fault(path):
                found[key] = fault
            elif path is not None and (given := read_settings(path).get("model_type")) != kind:
                found[key] = f"{path} is a {given}; allowed: {kind}"
        return found

    def stamps(self) -> dict[str, str]:
        """Tells size and time of change of the folders' files."""
        return stamps_of((self.segmenter.path, self.captioner.path))


@record
class LossConfig:
    """How much each part of the loss counts, and where masks are compared; the published values."""

    classes: float = 2.0  # cross-entropy
    no_object: float = 0.1  # of the class that queries without a segment should say, within the cross-entropy
    masks: float = 5.0  # binary cross-entropy at the points
    dice: float = 5.0  # at the same points
    captions: float = 0.1  # as in the published command; the release's yaml says 1.0
    smoothing: float = 0.1  # of a word's probability, spread over all other words
    caption_predictions: int = 9  # the last so many learn captions; the release's yaml says 3
    points: int = 12_544  # of each mask
    oversample: float = 3.0  # points drawn for each that is kept
    importance: float = 0.75  # share of the points that are kept for being the least certain

    def __post_init__(self) -> None:
        """Checks ranges."""
        if min(self.points, self.caption_predictions) < 1:
            raise InputError("points and caption_predictions must be 1 or more")
        if not (0 <= self.smoothing < 1 and 0 <= self.importance <= 1 and self.oversample >= 1):
            raise InputError("smoothing lies in [0, 1), importance in [0, 1], oversample is 1 or more")


@record
class AugmentConfig:
    """How a picture is changed before it is learnt from; drawn anew for every sample."""

    scale: tuple[float, float] = (0.1, 2.0)  # of the size that fits the square; what is larger is cut at random
    flip: float = 0.5  # how often left and right change places, also where captions speak of them, as published

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(f"scale must be two numbers above 0, the smaller one first, not {self.scale}")
        if not 0 <= self.flip <= 1:
            raise InputError(f"flip must lie in [0, 1], not {self.flip}")


@record
class Category:
    """One class of segments, as COCO's panoptic files list them."""

    id: int
    name: str
    thing: bool  # countable; of stuff an image has one segment at most


@record
class Blueprint:
    """A model resolved to plain settings; travels with the checkpoint: nothing else is needed to rebuild it."""

    segmenter: dict[str, Any]  # Mask2FormerConfig
    captioner: dict[str, Any]  # GitConfig
    object_size: int
    max_tokens: int
    gradient_scale: float
    categories: tuple[Category, ...]
    image_px: int
    least_score: float
    least_overlap: float

    def to_plain(self) -> dict[str, Any]:
        """Returns JSON-ready data."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Blueprint":
        """Rebuilds what `to_plain` gave."""
        return cls(**{**plain, "categories": tuple(Category(**one) for one in plain["categories"])})


def draw_blueprint(config: Pix2CapConfig, vocabulary_size: int, categories: Sequence[Category]) -> Blueprint:
    """Resolves a config: sizes come from the folders it names, else from itself."""
    captioner = _captioner_settings(config.captioner, vocabulary_size)
    if captioner["vocab_size"] != vocabulary_size:
        raise InputError(
            f"config.model.captioner.path: its words are {captioner['vocab_size']}, the tokenizer has {vocabulary_size}"
        )
    return Blueprint(
        segmenter=_segmenter_settings(config.segmenter),
        captioner=captioner,
        object_size=config.captioner.object_size,
        max_tokens=config.captioner.max_tokens,
        gradient_scale=config.captioner.gradient_scale,
        categories=tuple(categories),
        image_px=config.image_px,
        least_score=config.least_score,
        least_overlap=config.least_overlap,
    )


def _segmenter_settings(config: SegmenterConfig) -> dict[str, Any]:
    if config.path is not None:
        return read_settings(config.path)
    return {
        "backbone_config": _backbone_settings(config.backbone),
        "feature_size": config.width,
        "mask_feature_size": config.width,
        "hidden_dim": config.width,
        "encoder_layers": config.encoder_layers,
        "encoder_feedforward_dim": config.encoder_mlp_size,
        "decoder_layers": config.predictions,
        "num_attention_heads": config.heads,
        "dim_feedforward": config.decoder_mlp_size,
        "num_queries": config.queries,
    }


def _backbone_settings(config: BackboneConfig) -> dict[str, Any]:
    """Returns settings under which the features have strides 4, 8, 16 and 32, and twice as many channels each time."""
    sizes = [config.embed_size * factor for factor in (1, 2, 4, 8)]
    shared = {"model_type": config.kind, "depths": list(config.depths), "drop_path_rate": config.drop_path}
    if config.kind == "convnext":
        features = ["stage1", "stage2", "stage3", "stage4"]
        return {**shared, "hidden_sizes": sizes, "patch_size": 4, "out_features": features}
    return {
        **shared,
        "embed_dim": config.embed_size,
        "hidden_sizes": [*sizes[1:], sizes[-1]],
        "focal_levels": [config.focal_levels] * len(sizes),
        "focal_windows": [config.focal_window] * len(sizes),
        # transformers halves at the end of a stage, not at the beginning of the next one: a stage's features are the
        # next one's input, and those of stride 4 are the stem's
        "out_features": ["stem", "stage1", "stage2", "stage4"],
    }


def _captioner_settings(config: CaptionerConfig, vocabulary_size: int) -> dict[str, Any]:
    if config.path is not None:
        settings = read_settings(config.path)
        return {key: settings[key] for key in _GIT_KEYS if key in settings} | {"vision_config": {}}
    return {
        **stack_settings(config),
        "vocab_size": vocabulary_size,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "max_position_embeddings": config.max_tokens,
    }


_GIT_KEYS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "layer_norm_eps", "pad_token_id",
)  # fmt: skip
