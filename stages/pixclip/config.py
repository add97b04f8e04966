"""What a PixCLIP is made of, from tiny to full size; imports no torch.

Facts are of arXiv 2511.04601 and its release (StuHude/PixCLIP), which has no training code: what is not in it is a key
here, with a default that its closest relatives (Alpha-CLIP, LLM2CLIP) suggest.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.folders import folder_fault, read_vision_settings, stamps_of
from stages.sizes import llama_settings, vit_settings
from stages.towers import EvaConfig, TowerKind, eva_settings, tower_faults

FAMILY = "pixclip"  # what the manifests of its checkpoints say
TEXTS_FACT = "texts"  # of the manifest of shards that hold embeddings of their texts


@record
class VisionConfig:
    """The image tower: of CLIP a Hugging Face folder, or sizes to start from scratch; of EVA02 always sizes.

    The released B/16 has EVA02-CLIP's; the release's second base, LLM2CLIP's OpenAI ViT-L/14, is a CLIP.
    """

    kind: TowerKind = "clip"
    path: Path | None = None  # of kind eva02: a file with weights alone, so that the sizes below count all the same
    image_size: int = 64
    patch_size: int = 8
    hidden_size: int = 96
    layers: int = 3
    heads: int = 4
    mlp_size: int = 192
    eva: EvaConfig | None = None  # what only EVA02 has; null: as EVA02-CLIP


@record
class TextModelConfig:
    """A small text model that is a part of PixCLIP (LLaMA, every token seeing all others): sizes to start from."""

    hidden_size: int = 96
    layers: int = 2
    heads: int = 4
    mlp_size: int = 192
    max_tokens: int = 96  # longer texts are cut


@record
class EncoderConfig:
    """A language model whose mean hidden state stands for a text: a folder of LLaMA's kind, frozen, never trained here.

    LLM2CLIP's Llama-3-8B-Instruct, read in both directions (LLM2Vec), with 4,096 numbers a text.
    """

    path: Path
    max_tokens: int = 512  # longer texts are cut
    # what a text is wrapped in; LLM2Vec wraps those for a Llama-3-Instruct in its chat marks. Whether PixCLIP's
    # training did is unverified: "{text}" leaves them bare
    template: str = "{text}"
    bidirectional: bool = True  # False: every token sees the ones before it only

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be above 0, not {self.max_tokens}")
        if "{text}" not in self.template:
            raise ValueError(f"template must have {{text}} in it, which {self.template!r} has not")


@record
class ScaleConfig:
    """What similarities are multiplied by: one over a temperature.

    LLM2CLIP learns it from 1 / 0.07 on; Alpha-CLIP holds it at 100. PixCLIP's release learns it.
    """

    initial: float = 1 / 0.07
    learns: bool = True
    most: float = 100.0  # as in CLIP

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 0 < self.initial <= self.most:
            raise ValueError(f"initial must lie in (0, most], not {self.initial} where most is {self.most}")


@record
class PixClipConfig:
    """A whole PixCLIP, as a recipe asks for it."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    # null: texts come as embeddings beside the samples (pixclip_text_embeddings); else a model of its own reads them
    text: TextModelConfig | None = None
    weights: Path | None = None  # of an LLM2CLIP: over those of vision.path, its projection and text adapter too
    embedding_size: int = 1280
    adapter_blocks: int = 4  # of the text adapter, each a residual pair of layers
    adapter_expansion: int = 2
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    roi_sampling: int = 14  # bilinear samples along each side of a box, averaged; the release does not say how many

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("embedding_size", "adapter_blocks", "adapter_expansion", "roi_sampling"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")

    def faults(self) -> dict[str, str]:
        """Names the weights that are not there: key -> message."""
        found = {f"vision.{key}": problem for key, problem in tower_faults(self.vision).items()}
        if self.vision.kind == "clip" and (fault := folder_fault(self.vision.path)):
            found["vision.path"] = fault
        if self.weights is not None and not self.weights.exists():
            found["weights"] = f"{self.weights} is not there"
        return found

    def stamps(self) -> dict[str, str]:
        """Tells size and time of change of the files with weights."""
        return stamps_of([self.vision.path, self.weights])


@record
class Blueprint:
    """A PixCLIP as plain settings; travels with the checkpoint: nothing else is needed to rebuild the model."""

    vision: dict[str, Any]  # CLIPVisionConfig or EvaSettings
    text: dict[str, Any] | None  # LlamaConfig of the text model that is a part of it
    max_tokens: int  # of a text
    encoder: dict[str, Any] | None  # else: what the shards say of the language model that embedded their texts
    text_size: int  # numbers of a text before the adapter
    embedding_size: int
    adapter_blocks: int
    adapter_expansion: int
    scale: ScaleConfig
    roi_sampling: int
    vision_kind: TowerKind = "clip"  # older checkpoints do not say

    @property
    def side_px(self) -> int:
        """Returns the side of the square that the image tower reads."""
        side: int = self.vision["image_size"]
        return side

    def to_plain(self) -> dict[str, Any]:
        """Returns JSON-ready data."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Blueprint":
        """Rebuilds what `to_plain` gave."""
        return cls(**{**plain, "scale": ScaleConfig(**plain["scale"])})


def draw_blueprint(
    config: PixClipConfig, *, vocabulary_size: int | None = None, encoder: Mapping[str, Any] | None = None
) -> Blueprint:
    """Resolves a config: with the size of a vocabulary for its own text model, or what the shards say of theirs."""
    if config.text is not None:
        text, encoder = _text_settings(config.text, vocabulary_size), None
        max_tokens, text_size = config.text.max_tokens, config.text.hidden_size
    elif encoder is not None:
        text, max_tokens, text_size = None, int(encoder["max_tokens"]), int(encoder["size"])
    else:
        raise InputError("config.model.text is null, so the shards must hold embeddings of their texts")
    return Blueprint(
        vision=_vision_settings(config.vision),
        text=text,
        max_tokens=max_tokens,
        encoder=None if encoder is None else dict(encoder),
        text_size=text_size,
        embedding_size=config.embedding_size,
        adapter_blocks=config.adapter_blocks,
        adapter_expansion=config.adapter_expansion,
        scale=config.scale,
        roi_sampling=config.roi_sampling,
        vision_kind=config.vision.kind,
    )


def _text_settings(config: TextModelConfig, vocabulary_size: int | None) -> dict[str, Any]:
    if vocabulary_size is None:
        raise InputError("config.model.text begins a text model, which needs inputs.tokenizer")
    settings = llama_settings(config, positions=config.max_tokens)
    return {**settings, "vocab_size": vocabulary_size, "pad_token_id": None}


def _vision_settings(config: VisionConfig) -> dict[str, Any]:
    if config.kind == "eva02":  # patches are normed where regions are pooled from them
        return eva_settings(config, image_size=config.image_size, normed=False)
    if config.path is not None:
        # CLIPVisionConfig's own defaults
        return {"image_size": 224, "patch_size": 32, "hidden_size": 768, **read_vision_settings(config.path)}
    return vit_settings(config, image_size=config.image_size)
