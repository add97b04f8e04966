"""What a CLOC is made of, from tiny to full size; imports no torch."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.folders import folder_fault, read_settings, stamps_of
from stages.promptable import PrompterConfig
from stages.sizes import stack_settings, vit_settings

FAMILY = "cloc"  # what the manifests of its checkpoints say
Pooling = Literal["attention", "class"]


@record
class ImageConfig:
    """The image encoder (a ViT, as CLIP's), where it starts from scratch."""

    image_size: int = 64
    patch_size: int = 8
    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    mlp_size: int = 256


@record
class TextConfig:
    """The text encoder (as CLIP's), where it starts from scratch."""

    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    mlp_size: int = 256
    max_tokens: int = 77  # of a text, its end included; what is longer is cut


@record
class ClocConfig:
    """A whole CLOC, as a recipe asks for it: from scratch, as the paper recommends, or from a CLIP."""

    path: Path | None = None  # a CLIP's folder (transformers): both towers, their sizes, and its tokenizer
    tokenizer: Path | None = None  # a folder with one; the paper has T5's. null: inputs.tokenizer, or path's
    image: ImageConfig = field(default_factory=ImageConfig)  # without path
    text: TextConfig = field(default_factory=TextConfig)  # without path
    embedding_size: int = 64  # of the space that images, texts and regions share; without path
    pooling: Pooling = "attention"  # of image tokens to the image's embedding; class: by the class token, as CLIP
    lower_case: bool = True  # texts are read in lower case
    prompter: PrompterConfig = field(default_factory=PrompterConfig)

    def faults(self) -> dict[str, str]:
        """Names what is not there or does not fit: key -> message."""
        found = {}
        if self.path is not None:
            if problem := folder_fault(self.path):
                found["path"] = problem
            elif missing := sorted({"vision_config", "text_config"} - set(read_settings(self.path))):
                found["path"] = f"{self.path}/config.json has no {' and no '.join(missing)}: both towers are needed"
        if self.tokenizer is not None and not (self.tokenizer / "tokenizer.json").is_file():
            found["tokenizer"] = f"{self.tokenizer} has no tokenizer.json: give a folder with a fast tokenizer"
        for name, width, heads in self._attending():
            if width % heads or width % 4:
                found[f"{name}.hidden_size"] = f"must be a multiple of 4 and of {heads} heads, not {width}"
        if self.image.image_size % self.image.patch_size:
            found["image.image_size"] = f"must be a multiple of patch_size {self.image.patch_size}"
        return found

    def tokenizer_folder(self) -> Path | None:
        """Returns the folder that the config takes its tokenizer from, if it names one."""
        return self.tokenizer or self.path

    def stamps(self) -> dict[str, str]:
        """Tells size and time of change of the files that it names."""
        return stamps_of([self.path, self.tokenizer])

    def _attending(self) -> list[tuple[str, int, int]]:
        towers: list[tuple[str, ImageConfig | TextConfig]] = [("image", self.image), ("text", self.text)]
        return [(name, tower.hidden_size, tower.heads) for name, tower in towers]


@record
class Blueprint:
    """A CLOC resolved to plain settings; travels with the checkpoint: nothing else is needed to rebuild the model."""

    vision: dict[str, Any]  # CLIPVisionConfig
    text: dict[str, Any]  # CLIPTextConfig
    embedding_size: int
    pooling: Pooling
    lower_case: bool
    prompter: PrompterConfig

    @property
    def image_size(self) -> int:
        """Returns the side of the square that the image encoder reads, in pixels."""
        side: int = self.vision["image_size"]
        return side

    @property
    def max_tokens(self) -> int:
        """Returns how many tokens a text may have."""
        tokens: int = self.text["max_position_embeddings"]
        return tokens

    def to_plain(self) -> dict[str, Any]:
        """Returns JSON-ready data."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Blueprint":
        """Rebuilds what `to_plain` gave; KeyError, TypeError or ValueError if it is something else."""
        return cls(**{**plain, "prompter": PrompterConfig(**plain["prompter"])})


def draw_blueprint(config: ClocConfig, vocabulary_size: int) -> Blueprint:
    """Resolves a config: sizes come from the folder it names, else from itself."""
    settings = _clip_settings(config.path) if config.path is not None else _own_settings(config, vocabulary_size)
    known = settings["text"].get("vocab_size", vocabulary_size)
    if known < vocabulary_size:
        raise InputError(f"config.model: the tokenizer has {vocabulary_size} tokens, the text encoder of path {known}")
    return Blueprint(
        **settings, pooling=config.pooling, lower_case=config.lower_case, prompter=config.prompter
    )  # fmt: skip


def vocabulary_in(folder: Path) -> int | None:
    """Counts the tokens of a tokenizer's file without opening it as one; None where it cannot be told."""
    try:
        plain = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        words = plain["model"]["vocab"]
        named = set(words) if isinstance(words, dict) else {word for word, _ in words}
        return len(named | {added["content"] for added in plain.get("added_tokens", ())})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _clip_settings(folder: Path) -> dict[str, Any]:
    settings = read_settings(folder)
    text = {"max_position_embeddings": 77, "vocab_size": 49_408, **settings["text_config"]}
    size = settings.get("projection_dim", 512)
    vision = {"image_size": 224, "hidden_size": 768, "patch_size": 32, **settings["vision_config"]}
    return {"vision": vision, "text": text, "embedding_size": size}


def _own_settings(config: ClocConfig, vocabulary_size: int) -> dict[str, Any]:
    text, act = config.text, {"hidden_act": "gelu"}
    nobody_reads = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)  # transformers' own are CLIP's
    return {
        "vision": {**vit_settings(config.image, image_size=config.image.image_size), **act},
        "text": {
            **stack_settings(text),
            **act,
            **nobody_reads,
            "max_position_embeddings": text.max_tokens,
            "vocab_size": vocabulary_size,
        },
        "embedding_size": config.embedding_size,
    }
