"""What a PixelLLM is made of, from tiny to full size; imports no torch.

Published: EVA02 ViT-L/14 beside SAM ViT-H at 384 px, Flan-T5-XL with LoRA 32. A CLIP image encoder of any size may
stand in EVA02's place (`semantic.kind`).
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.adapters import LoraConfig
from stages.folders import folder_fault, read_settings, read_vision_settings, stamps_of
from stages.sizes import sam_vision_settings, stack_settings, vit_settings
from stages.towers import EvaConfig, TowerKind, eva_settings, tower_faults

FAMILY = "pixelllm"  # what the manifests of its checkpoints say
SAM_KINDS = ("sam", "sam_vision_model")  # whole, or its image encoder alone


@record
class LanguageConfig:
    """What speaks: T5 (Flan-T5's form), or a decoder with BERT's vocabulary (GIT's has 6 layers of 768, 12 heads)."""

    path: Path | None = None  # a Hugging Face folder: T5's weights and tokenizer, or of BERT the tokenizer alone
    kind: Literal["t5", "bert"] = "t5"
    hidden_size: int = 128
    layers: int = 2  # of the decoder; T5's encoder has as many
    heads: int = 4
    mlp_size: int = 256
    dropout: float = 0.1


@record
class SemanticConfig:
    """The image encoder that knows what things are: of CLIP a Hugging Face folder, or sizes; of EVA02 sizes."""

    kind: TowerKind = "clip"
    path: Path | None = None  # of kind eva02: a file with weights alone, so that the sizes below count all the same
    patch_size: int = 8
    hidden_size: int = 96
    layers: int = 3
    heads: int = 4
    mlp_size: int = 192
    eva: EvaConfig | None = None  # what only EVA02 has; null: as EVA02-CLIP


@record
class LocalizationConfig:
    """The image encoder that knows where things are (SAM): a Hugging Face folder, or sizes. Frozen as published."""

    path: Path | None = None
    patch_size: int = 8
    hidden_size: int = 48
    layers: int = 1
    heads: int = 2
    mlp_size: int = 96
    window_size: int = 4
    global_layers: tuple[int, ...] = (0,)
    channels: int = 32  # of its map, and of SAM's prompt encodings


@record
class ExtractorConfig:
    """The two-way transformer between prompts and image, and the tokens that it gives to the language model."""

    width: int = 512
    layers: int = 6
    heads: int = 8
    mlp_size: int = 2048
    tokens: int = 32
    token_size: int = 1024

    def __post_init__(self) -> None:
        """Refuses heads that do not divide half of the width: attention between prompts and image is half as wide."""
        if self.width % (2 * self.heads):
            raise InputError(f"width must be a multiple of twice the heads ({2 * self.heads}), not {self.width}")


@record
class LocationConfig:
    """The head that says where a word is: two points for each token."""

    hidden_size: int = 512
    layers: int = 4


@record
class DetectorConfig:
    """Proposals of boxes whatever they hold (CenterNet's manner); null in a model that proposes none."""

    channels: int = 256
    layers: int = 4  # of each of the two branches
    overlap: float = 0.7  # proposals that overlap a better one by more are dropped
    score: float = 0.05  # proposals below are dropped
    most: int = 100  # boxes of an image


@record
class MaskAdapterConfig:
    """What tells SAM's mask decoder more than a box does: two tokens that look at the image's tokens and the words."""

    layers: int = 2
    heads: int = 8
    mlp_size: int = 2048


@record
class MaskConfig:
    """Masks of what is referred to, by SAM's mask decoder; null in a model that draws none. As wide as SAM's map."""

    path: Path | None = None  # a Hugging Face folder of SAM: the decoder's weights and sizes; else the sizes below
    layers: int = 2
    heads: int = 8
    mlp_size: int = 2048
    score_size: int = 256  # of the layers that guess how good a mask is
    adapter: MaskAdapterConfig = field(default_factory=MaskAdapterConfig)


@record
class PixelLLMConfig:
    """A whole PixelLLM, as a recipe asks for it."""

    language: LanguageConfig = field(default_factory=LanguageConfig)
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    localization: LocalizationConfig = field(default_factory=LocalizationConfig)
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    location: LocationConfig = field(default_factory=LocationConfig)
    detector: DetectorConfig | None = None
    masks: MaskConfig | None = None
    lora: LoraConfig | None = None  # published: rank 32, alpha 64 on q and v of encoder and decoder
    canvas_px: int = 384  # images are scaled and padded to this square

    def faults(self) -> dict[str, str]:
        """Names folders that are not there, or hold another model: key -> message."""
        faults = {f"{name}.path": model_fault(path, kinds) for name, (path, kinds) in self._folders().items()}
        found = {key: problem for key, problem in faults.items() if problem is not None}
        found |= {f"semantic.{key}": problem for key, problem in tower_faults(self.semantic).items()}
        if self.language.kind == "bert" and self.lora is not None:
            found["lora"] = "the decoder with BERT's vocabulary learns whole, as published; say null"
        if self.masks is not None and "localization.path" not in found:
            channels = _localization_settings(self.localization, self.canvas_px)["output_channels"]
            found |= {f"masks.{key}": problem for key, problem in head_faults(self.masks, channels).items()}
        return found

    def stamps(self) -> dict[str, str]:
        """Tells size and time of change of the folders' files. Their content would take minutes to read."""
        return stamps_of([*(path for path, _ in self._folders().values()), self.semantic.path])

    def _folders(self) -> dict[str, tuple[Path | None, tuple[str, ...]]]:
        return {
            "language": (self.language.path, ("t5",) if self.language.kind == "t5" else ("bert",)),
            "semantic": (self.semantic.path if self.semantic.kind == "clip" else None, ("clip", "clip_vision_model")),
            "localization": (self.localization.path, SAM_KINDS),
            "masks": (None if self.masks is None else self.masks.path, SAM_KINDS[:1]),
        }


@record
class Blueprint:
    """A PixelLLM resolved to plain settings; travels with the checkpoint: nothing else is needed to rebuild it."""

    language_kind: Literal["t5", "bert"]
    language: dict[str, Any]  # T5Config or BertGenerationConfig
    semantic: dict[str, Any]  # CLIPVisionConfig or EvaSettings
    localization: dict[str, Any]  # SamVisionConfig
    extractor: ExtractorConfig
    location: LocationConfig
    detector: DetectorConfig | None
    lora: LoraConfig | None
    canvas_px: int
    mask_decoder: dict[str, Any] | None = None  # SamMaskDecoderConfig
    mask_adapter: MaskAdapterConfig | None = None  # where there is a mask decoder
    semantic_kind: TowerKind = "clip"  # older checkpoints do not say

    def to_plain(self) -> dict[str, Any]:
        """Returns JSON-ready data."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Blueprint":
        """Rebuilds what `to_plain` gave."""
        parts = {
            "extractor": ExtractorConfig,
            "location": LocationConfig,
            "detector": DetectorConfig,
            "lora": LoraConfig,
            "mask_adapter": MaskAdapterConfig,
        }
        read = {
            name: part and kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in part.items()})
            for name, kind in parts.items()
            for part in [plain.get(name)]
        }
        return cls(**{**plain, **read})

    @property
    def vocabulary_size(self) -> int:
        """Counts the rows of the language model's embedding: as many as its tokenizer has tokens, or some more."""
        return int(self.language.get("vocab_size", 32_128))

    @property
    def language_size(self) -> int:
        """Returns the width of the language model."""
        width: int = self.language["d_model" if self.language_kind == "t5" else "hidden_size"]
        return width

    @property
    def prompt_channels(self) -> int:
        """Returns the width of SAM's map and of its prompt encodings."""
        channels: int = self.localization["output_channels"]
        return channels


def draw_blueprint(config: PixelLLMConfig, tokens: int) -> Blueprint:
    """Resolves a config for a tokenizer of so many tokens: sizes come from the folders it names, else from itself.

    Both image encoders read the canvas, whatever size they were trained at.
    """
    blueprint = Blueprint(
        language_kind=config.language.kind,
        language=_language_settings(config.language, tokens),
        semantic=_semantic_settings(config.semantic, config.canvas_px),
        localization=_localization_settings(config.localization, config.canvas_px),
        extractor=config.extractor,
        location=config.location,
        detector=config.detector,
        lora=config.lora,
        canvas_px=config.canvas_px,
        semantic_kind=config.semantic.kind,
    )
    return blueprint if config.masks is None else drawing_masks(blueprint, config.masks)


def drawing_masks(blueprint: Blueprint, config: MaskConfig) -> Blueprint:
    """Returns the blueprint of a model that draws masks too; InputError where heads do not divide the width."""
    channels, folder = blueprint.prompt_channels, config.path
    settings = {} if folder is None else dict(read_settings(folder).get("mask_decoder_config", {}))
    if folder is None:
        settings = {
            "num_hidden_layers": config.layers, "num_attention_heads": config.heads, "mlp_dim": config.mlp_size,
            "iou_head_hidden_dim": config.score_size,
        }  # fmt: skip
    for key, problem in head_faults(config, channels).items():
        raise InputError(f"config.masks.{key}: {problem}")
    decoder = {**settings, "hidden_size": channels}
    return replace(blueprint, mask_decoder=decoder, mask_adapter=config.adapter)


def head_faults(config: MaskConfig, channels: int) -> dict[str, str]:
    """Finds attention of masks that cannot be cut into its heads: it is half as wide as SAM's map, or as wide."""
    heads = {"adapter.heads": config.adapter.heads, **({"heads": config.heads} if config.path is None else {})}
    return {
        key: f"twice the heads ({2 * number}) must divide SAM's {channels} channels"
        for key, number in heads.items()
        if channels % (2 * number)
    }


def model_fault(path: Path | None, kinds: tuple[str, ...]) -> str | None:
    """Says what is wrong with a folder of one of these kinds of models; None where nothing is, or none is named."""
    if (problem := folder_fault(path)) or path is None:
        return problem
    kind = read_settings(path).get("model_type", kinds[0])
    return None if kind in kinds else f"{path} is a {kind}; allowed: {', '.join(kinds)}"


def _language_settings(config: LanguageConfig, tokens: int) -> dict[str, Any]:
    if config.kind == "t5" and config.path is not None:
        return read_settings(config.path)
    if config.kind == "t5":
        return {
            "vocab_size": tokens, "d_model": config.hidden_size, "d_kv": config.hidden_size // config.heads,
            "d_ff": config.mlp_size, "num_layers": config.layers, "num_decoder_layers": config.layers,
            "num_heads": config.heads, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
            "dropout_rate": config.dropout,
        }  # fmt: skip
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), config.dropout)
    return {**stack_settings(config), "vocab_size": tokens, **dropout}


def _semantic_settings(config: SemanticConfig, canvas_px: int) -> dict[str, Any]:
    if config.kind == "eva02":  # what is released ends with a norm, unlike the CLIP of transformers
        return eva_settings(config, image_size=canvas_px, normed=True)
    if config.path is not None:
        return read_vision_settings(config.path) | {"image_size": canvas_px}
    return vit_settings(config, image_size=canvas_px)


def _localization_settings(config: LocalizationConfig, canvas_px: int) -> dict[str, Any]:
    if config.path is not None:
        return {"output_channels": 256, **read_vision_settings(config.path), "image_size": canvas_px}
    return sam_vision_settings(config, image_size=canvas_px)
