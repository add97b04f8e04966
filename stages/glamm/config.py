"""What a GLaMM is made of, from tiny to full size; imports no torch."""

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
from stages.promptable import Promptable, PrompterSizes, read_promptable
from stages.sizes import llama_settings, sam_vision_settings, vit_settings

FAMILY = "glamm"  # what the manifests of its checkpoints say
WEIGHT_FILES = (".safetensors", ".bin", ".pth", ".pt")
LLAMAS = ("llama", "llava", "llava_llama")  # what config.json calls a LLaMA and those that are built on one
LANGUAGE_MODEL = "LlamaForCausalLM"  # the class of transformers
NO_PROMPTER = "prompter is part of a CLOC: give its export by inputs.vision or config.model.vision.path; allowed: roi"
SPECIAL_TOKENS = ("<im_start>", "<im_end>", "<bbox>", "<point>", "[SEG]", "<p>", "</p>")


@record
class LanguageConfig:
    """The language model (LLaMA): a Hugging Face folder with weights and tokenizer, or sizes to start from scratch."""

    path: Path | None = None
    adapter: Path | None = None  # of PEFT, for what `path` holds: kept where the model has `lora`, else merged
    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    mlp_size: int = 384
    max_positions: int = 1024


@record
class VisionConfig:
    """The global image encoder (CLIP vision): a Hugging Face folder, or sizes to start from scratch."""

    path: Path | None = None
    image_size: int = 64
    patch_size: int = 8
    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    mlp_size: int = 256
    feature_layer: int = -2  # which hidden state becomes image tokens


@record
class GroundingConfig:
    """The grounding image encoder and pixel decoder (SAM): weights, or sizes to start from scratch.

    Weights are a Hugging Face folder, or one of segment-anything's own files (sam_vit_h_4b8939.pth).
    """

    path: Path | None = None
    image_size: int = 64
    patch_size: int = 4
    hidden_size: int = 64
    layers: int = 3
    heads: int = 4
    mlp_size: int = 128
    window_size: int = 8
    global_layers: tuple[int, ...] = (2,)
    channels: int = 64  # of the image embedding and the mask decoder
    decoder_mlp_size: int = 128
    decoder_heads: int = 4


@record
class RegionConfig:
    """The region encoder of kind roi: which hidden states of the image encoder it reads, and how it fuses them."""

    layers: tuple[int, ...] = (14, 17, 20, 23)  # hidden states, shallow to deep; 0 = the embeddings
    upsample: tuple[int, ...] = (8, 4, 2, 1)  # how much finer than the patch grid each level becomes
    channels: int = 1024
    rounds: int = 5  # of exchange between neighbouring levels
    groups: int = 64  # of the group norms
    roi_size: int = 14
    sampling: int = 2
    position_size: int = 256

    def __post_init__(self) -> None:
        """Checks what cannot work."""
        if len(self.layers) != len(self.upsample):
            raise InputError(f"upsample must name one factor per level: {len(self.layers)} layers are listed")
        if self.channels % self.groups or self.channels % 4:
            raise InputError(f"channels must be a multiple of 4 and of groups ({self.groups}), not {self.channels}")


@record
class GlammConfig:
    """A whole GLaMM, as a recipe asks for it."""

    language: LanguageConfig = field(default_factory=LanguageConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    grounding: GroundingConfig = field(default_factory=GroundingConfig)
    region_encoder: Literal["roi", "prompter"] = "roi"  # prompter: that of a CLOC, which is the image encoder then
    region: RegionConfig = field(default_factory=RegionConfig)  # of roi
    lora: LoraConfig | None = None
    weights: Path | None = None  # over those of the parts: a GLaMM, GPT4RoI or LLaVA, published or of DeepSpeed
    max_tokens: int = 1536  # of a training sequence, image tokens included
    centre_crop: bool = False  # True: crop as the published weights expect; boxes then miss on non-square images
    roi_side_px: int | None = None  # 224: as the published weights expect; None: the image encoder's own size

    def faults(self) -> dict[str, str]:
        """Names the weights that are not there: key -> message."""
        parts = {"language": self.language.path, "vision": self.vision.path, "grounding": self.grounding.path}
        found = {f"{name}.path": fault for name, path in parts.items() if (fault := folder_fault(path)) is not None}
        grounding, adapter = self.grounding.path, self.language.adapter
        if grounding is not None and grounding.is_file() and grounding.suffix in WEIGHT_FILES:
            del found["grounding.path"]  # a file of segment-anything says its sizes by its shapes
        if adapter is not None and self.language.path is None:
            found["language.adapter"] = "belongs to the weights of language.path, which is not given"
        elif adapter is not None and not (adapter / "adapter_config.json").is_file():
            found["language.adapter"] = f"{adapter} has no adapter_config.json: give a folder that PEFT has saved"
        if self.weights is not None and not self.weights.exists():
            found["weights"] = f"{self.weights} is not there"
        if self.region_encoder == "prompter":
            found |= self._prompter_faults(found)
        return self._strange_sizes(found) | found

    def _prompter_faults(self, known: Mapping[str, str]) -> dict[str, str]:
        """Names what a Prompter cannot be had with: another image encoder, pictures in another shape than its own."""
        found = {}
        if self.vision.path is not None and "vision.path" not in known:
            try:
                read_promptable(self.vision.path)
            except InputError as error:
                found["vision.path"] = f"{error}, or say region_encoder: roi"
        reads = "region_encoder: prompter reads pictures whole, padded to a square"
        if self.centre_crop:
            found["centre_crop"] = f"{reads}; allowed: false"
        if self.roi_side_px is not None:
            found["roi_side_px"] = f"{reads}; allowed: null"
        return found

    def _strange_sizes(self, known: Mapping[str, str]) -> dict[str, str]:
        """Names what is there and does not fit: another language model, levels that the image encoder lacks."""
        found = {}
        if self.language.path is not None and "language.path" not in known:
            kind = (settings := read_settings(self.language.path)).get("model_type", LLAMAS[0])
            if kind not in LLAMAS or "text_config" in settings:
                found["language.path"] = f"{self.language.path} is a {kind}; allowed: {', '.join(LLAMAS)}"
        if self.region_encoder == "roi" and self.vision.path is not None and "vision.path" not in known:
            deepest = _vision_settings(self.vision).get("num_hidden_layers", max(self.region.layers))
            if strange := [str(layer) for layer in self.region.layers if not 0 <= layer <= deepest]:
                found["region.layers"] = f"{', '.join(strange)} given, the image encoder has 0 to {deepest}"
        return found

    def stamps(self) -> dict[str, str]:
        """Tells size and time of change of the files that the weights lie in, and of whatever is beside them."""
        paths = (self.language.path, self.language.adapter, self.vision.path, self.grounding.path, self.weights)
        return stamps_of(paths)


@record
class Blueprint:
    """A GLaMM resolved to plain settings; travels with the checkpoint: nothing else is needed to rebuild the model."""

    language: dict[str, Any]  # LlamaConfig
    vision: dict[str, Any]  # CLIPVisionConfig
    grounding: dict[str, Any]  # SamConfig: vision_config, prompt_encoder_config, mask_decoder_config
    region: RegionConfig
    lora: LoraConfig | None
    vocabulary_size: int
    feature_layer: int
    max_tokens: int
    centre_crop: bool
    roi_side_px: int | None
    prompter: PrompterSizes | None = None  # what reads boxes in the place of `region`; older checkpoints do not say

    @property
    def padded(self) -> bool:
        """Tells whether the image encoder reads pictures padded to a square, and boxes are in units of that square."""
        return self.prompter is not None

    @property
    def levels(self) -> tuple[int, ...]:
        """Returns which hidden states of the image encoder the region encoder reads."""
        return self.region.layers if self.prompter is None else (-1,)

    @property
    def num_image_tokens(self) -> int:
        """Counts the language tokens that one image takes."""
        side: int = self.vision["image_size"] // self.vision["patch_size"]
        return side * side

    @property
    def read_states(self) -> tuple[int, ...]:
        """Returns which hidden states of the image encoder are read, in their order; 0 = the embeddings."""
        return tuple(sorted({self.state(layer) for layer in (self.feature_layer, *self.levels)}))

    def state(self, layer: int) -> int:
        """Counts a hidden state of the image encoder, as settings name it, from its embeddings."""
        count: int = self.vision.get("num_hidden_layers", 12) + 1  # 12 is what CLIPVisionConfig takes
        return layer % count

    @property
    def canvas_px(self) -> int:
        """Returns the side of the square that the grounding image encoder reads."""
        side: int = self.grounding["vision_config"]["image_size"]
        return side

    def to_plain(self) -> dict[str, Any]:
        """Returns JSON-ready data."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Blueprint":
        """Rebuilds what `to_plain` gave."""
        region = RegionConfig(**{name: _frozen(value) for name, value in plain["region"].items()})
        lora = plain["lora"] and LoraConfig(**{name: _frozen(value) for name, value in plain["lora"].items()})
        prompter = plain.get("prompter") and PrompterSizes.from_plain(plain["prompter"])
        return cls(**{**plain, "region": region, "lora": lora or None, "prompter": prompter or None})


def draw_blueprint(config: GlammConfig, vocabulary_size: int, seeing: Promptable | None = None) -> Blueprint:
    """Resolves a config: sizes come from the folders it names, else from itself.

    `seeing` is the image encoder where no folder has it yet. InputError for a Prompter that nobody brings.
    """
    if seeing is None and config.region_encoder == "prompter":
        if config.vision.path is None:
            raise InputError(f"config.model.region_encoder: {NO_PROMPTER}")
        seeing = read_promptable(config.vision.path)
    return Blueprint(
        language=language_settings(config.language) | {"vocab_size": vocabulary_size},
        vision=_vision_settings(config.vision) if seeing is None else dict(seeing.vision),
        grounding=_grounding_settings(config.grounding),
        region=config.region,
        lora=config.lora,
        vocabulary_size=vocabulary_size,
        feature_layer=config.vision.feature_layer,
        max_tokens=config.max_tokens,
        centre_crop=config.centre_crop,
        roi_side_px=config.roi_side_px,
        prompter=seeing.prompter if seeing is not None and config.region_encoder == "prompter" else None,
    )


def language_settings(config: LanguageConfig) -> dict[str, Any]:
    """Returns what transformers' LlamaConfig needs, less the vocabulary."""
    if config.path is not None:
        return read_settings(config.path)
    return {**llama_settings(config, positions=config.max_positions), "tie_word_embeddings": False}


def _vision_settings(config: VisionConfig) -> dict[str, Any]:
    if config.path is not None:
        return read_vision_settings(config.path)
    return vit_settings(config, image_size=config.image_size)


def _grounding_settings(config: GroundingConfig) -> dict[str, Any]:
    if config.path is not None and config.path.is_file():
        from stages.glamm.sam_original import read_sam_settings

        return read_sam_settings(config.path)
    if config.path is not None:
        return read_settings(config.path)
    return {
        "vision_config": {
            **sam_vision_settings(config, image_size=config.image_size),
            "num_pos_feats": config.channels // 2,
            "scale": 1.0,
        },
        "prompt_encoder_config": {
            "hidden_size": config.channels,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
        },
        "mask_decoder_config": {
            "hidden_size": config.channels,
            "mlp_dim": config.decoder_mlp_size,
            "num_attention_heads": config.decoder_heads,
            "iou_head_hidden_dim": config.channels,
        },
    }


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
