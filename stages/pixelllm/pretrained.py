"""Fills a PixelLLM from folders of Flan-T5, CLIP and SAM as transformers saves them, or EVA-02's file, by tensors.

Both image encoders run at the canvas's size and not at their own: their tables of positions are resized, as published.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from orchestrator.errors import InputError
from orchestrator.training.foreign.mapping import Rule, fill_from, rules_of
from orchestrator.training.foreign.opening import open_source
from orchestrator.training.foreign.source import TensorSource, few
from orchestrator.training.holdings import saved_buffers
from stages.eva_weights import open_tower
from stages.pixelllm.config import PixelLLMConfig
from stages.positions import Resized

T5_RULES = rules_of(
    (r"(?:encoder|decoder)\.embed_tokens\.weight", None),  # the shared table once more
    (r"((?:shared|encoder|decoder|lm_head)\..+)", r"language.model.\1"),
)
TOWER_RULES = rules_of(
    (r"(?:vision_model\.)?embeddings\.position_ids", None),
    (r"(?:text_model|text_projection|visual_projection|logit_scale).*", None),  # the half that reads text
    (r"(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..+)", r"semantic.\1"),
)
SAM_RULES = rules_of(
    (r"(?:sam\.)?(vision_encoder\..+)", r"localization.\1"),
    (r"(?:sam\.)?prompt_encoder\.shared_embedding\.positional_embedding", None),  # the one below once more
    (r"(?:sam\.)?shared_image_embedding\.(positional_embedding)", r"prompts.\1"),
    (r"(?:sam\.)?prompt_encoder\.((?:point_embed|not_a_point_embed|no_mask_embed)\..+)", r"prompts.\1"),
    (r"(?:sam\.)?(?:prompt_encoder\.mask_embed|mask_decoder)\..+", None),
)
MASK_RULES = rules_of(
    (r"(?:sam\.)?mask_decoder\.(.+)", r"masks.decoder.\1"),
    (r"(?:sam\.)?(?:vision_encoder|prompt_encoder|shared_image_embedding)\..+", None),
)


def fill_from_folders(model: nn.Module, config: PixelLLMConfig) -> frozenset[str]:
    """Fills the parts whose folders are named, and returns the names of what was filled.

    Each rank reads the files and keeps what it holds. A part of which a folder has only some weights is refused.
    """
    wanted = {**dict(model.named_parameters()), **dict(saved_buffers(model))}
    language = config.language.path if config.language.kind == "t5" else None  # of BERT the vocabulary alone is taken
    semantic = config.semantic
    parts = (
        (language, open_source, T5_RULES, ("language.",)),
        (semantic.path, partial(open_tower, semantic.kind), TOWER_RULES, ("semantic.",)),
        (config.localization.path, open_source, SAM_RULES, ("localization.", "prompts.")),
    )
    filled = [_filled(wanted, read(path), rules, prefixes) for path, read, rules, prefixes in parts if path is not None]
    if config.masks is not None and config.masks.path is not None:
        filled.append(fill_masks(model, config.masks.path))
    return frozenset().union(*filled)


def fill_masks(model: nn.Module, path: Path) -> frozenset[str]:
    """Fills the mask decoder from a folder of SAM, and returns the names of what was filled."""
    return _filled(dict(model.named_parameters()), open_source(path), MASK_RULES, ("masks.decoder.",))


def _filled(
    wanted: Mapping[str, Tensor], source: TensorSource, rules: Sequence[Rule], prefixes: tuple[str, ...]
) -> frozenset[str]:
    own = {name: tensor for name, tensor in wanted.items() if name.startswith(prefixes)}
    report = fill_from(own, Resized(source, own), rules)
    if lacking := [name for name in report.missing if "lora_" not in name]:
        raise InputError(f"{source.label}: it lacks {len(lacking)} weights of the part that it fills: {few(lacking)}")
    return frozenset(report.loaded)
