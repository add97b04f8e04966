"""What a PixelLLM is made of, from tiny to full size; imports no torch.

Published: EVA02 ViT-L/14 beside SAM ViT-H at 384 px, Flan-T5-XL with LoRA 32. EVA02 is not among the models of
transformers: a CLIP image encoder of any size stands in its place (ViT-L/14 has the same width, depth and grid).
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.adapters import LoraConfig
from stages.folders import folder_fault, read_settings, read_vision_settings, stamps_of

FAMILY = "pixelllm"  # what the manifests of its checkpoints say


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
    """The image encoder that knows what things are (CLIP vision): a Hugging Face folder, or sizes."""

    path: Path | None = None
    patch_size: int = 8
    hidden_size: int = 96
    layers: int = 3
    heads: int = 4
    mlp_size: int = 192


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
class PixelLLMConfig:
    """A whole PixelLLM, as a recipe asks for it."""

    language: LanguageConfig = field(default_factory=LanguageConfig)
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    localization: LocalizationConfig = field(default_factory=LocalizationConfig)
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    location: LocationConfig = field(default_factory=LocationConfig)
    detector: DetectorConfig | None = None
    lora: LoraConfig | None = None  # published: rank 32, alpha 64 on q and v of encoder and decoder
    canvas_px: int = 384  # images are scaled and padded to this square

    def faults(self) -> dict[str, str]:
        """Names folders that are not there, or hold another model: key -> message."""
        found = {}
        for name, (path, kinds) in self._folders().items():
            if problem := folder_fault(path):
                found[f"{name}.path"] = problem
            elif path is not None and (kind := read_settings(path).get("model_type", kinds[0])) not in kinds:
                found[f"{name}.path"] = f"{path} is a {kind}; allowed: {', '.join(kinds)}"
        if self.language.kind == "bert" and self.lora is not None:
            found["lora"] = "the decoder with BERT's vocabulary learns whole, as published; say null"
        return found

    def stamps(self) -> dict[str, str]:
        """Tells size and time of change of the folders' files. Their content would take minutes to read."""
        return stamps_of(path for path, _ in self._folders().values())

    def _folders(self) -> dict[str, tuple[Path | None, tuple[str, ...]]]:
        return {
            "language": (self.language.path, ("t5",) if self.language.kind == "t5" else ("bert",)),
            "semantic": (self.semantic.path, ("clip", "clip_vision_model")),
            "localization": (self.localization.path, ("sam", "sam_vision_model")),
        }


@record
class Blueprint:
    """A PixelLLM resolved to plain settings; travels with the checkpoint: nothing else is needed to rebuild it."""

    language_kind: Literal["t5", "bert"]
    language: dict[str, Any]  # T5Config or BertGenerationConfig
    semantic: dict[str, Any]  # CLIPVisionConfig
    localization: dict[str, Any]  # SamVisionConfig
    extractor: ExtractorConfig
    location: LocationConfig
    detector: DetectorConfig | None
    lora: LoraConfig | None
    canvas_px: int

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
        }
        read = {
            name: part and kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in part.items()})
            for name, kind in parts.items()
            for part in [plain[name]]
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
    localization = _localization_settings(config.localization)
    return Blueprint(
        language_kind=config.language.kind,
        language=_language_settings(config.language, tokens),
        semantic=_semantic_settings(config.semantic) | {"image_size": config.canvas_px},
        localization=localization | {"image_size": config.canvas_px},
        extractor=config.extractor,
        location=config.location,
        detector=config.detector,
        lora=config.lora,
        canvas_px=config.canvas_px,
    )


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
    return {
        "vocab_size": tokens, "hidden_size": config.hidden_size, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "intermediate_size": config.mlp_size,
        "hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.dropout,
    }  # fmt: skip


def _semantic_settings(config: SemanticConfig) -> dict[str, Any]:
    if config.path is not None:
        return read_vision_settings(config.path)
    return {
        "patch_size": config.patch_size, "hidden_size": config.hidden_size, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "intermediate_size": config.mlp_size,
    }  # fmt: skip


def _localization_settings(config: LocalizationConfig) -> dict[str, Any]:
    if config.path is not None:
        return {"output_channels": 256, **read_vision_settings(config.path)}
    return {
        "patch_size": config.patch_size, "hidden_size": config.hidden_size, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "mlp_dim": config.mlp_size, "window_size": config.window_size,
        "global_attn_indexes": list(config.global_layers), "output_channels": config.channels,
    }  # fmt: skip
