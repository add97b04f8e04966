"""Fills a PixelLLM from folders of Flan-T5, CLIP and SAM, as transformers saves them, tensor by tensor.

SAM runs at the canvas's size and not at its own, and CLIP too: their tables of positions are resized, as published.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.errors import InputError
from orchestrator.training.foreign.mapping import Rule, fill_from, rules_of
from orchestrator.training.foreign.opening import open_source
from orchestrator.training.foreign.source import Entry, TensorSource, few
from orchestrator.training.holdings import saved_buffers
from orchestrator.training.optim import whole_shape
from stages.pixelllm.config import PixelLLMConfig

log = logging.getLogger(__name__)

T5_RULES = rules_of(
    (r"(?:encoder|decoder)\.embed_tokens\.weight", None),  # the shared table once more
    (r"((?:shared|encoder|decoder|lm_head)\..+)", r"language.model.\1"),
)
CLIP_RULES = rules_of(
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
_CLIP_POSITIONS, _SAM_POSITIONS = "position_embedding.weight", "pos_embed"


def fill_from_folders(model: nn.Module, config: PixelLLMConfig) -> frozenset[str]:
    """Fills the parts whose folders are named, and returns the names of what was filled.

    Each rank reads the files and keeps what it holds. A part of which a folder has only some weights is refused.
    """
    wanted = {**dict(model.named_parameters()), **dict(saved_buffers(model))}
    language = config.language.path if config.language.kind == "t5" else None  # of BERT the vocabulary alone is taken
    parts = (
        (language, T5_RULES, ("language.",)),
        (config.semantic.path, CLIP_RULES, ("semantic.",)),
        (config.localization.path, SAM_RULES, ("localization.", "prompts.")),
    )
    filled = [_filled(wanted, path, rules, prefixes) for path, rules, prefixes in parts if path is not None]
    if config.masks is not None and config.masks.path is not None:
        filled.append(fill_masks(model, config.masks.path))
    return frozenset().union(*filled)


def fill_masks(model: nn.Module, path: Path) -> frozenset[str]:
    """Fills the mask decoder from a folder of SAM, and returns the names of what was filled."""
    return _filled(dict(model.named_parameters()), path, MASK_RULES, ("masks.decoder.",))


def _filled(
    wanted: Mapping[str, Tensor], path: Path, rules: Sequence[Rule], prefixes: tuple[str, ...]
) -> frozenset[str]:
    own = {name: tensor for name, tensor in wanted.items() if name.startswith(prefixes)}
    report = fill_from(own, Resized(open_source(path), own), rules)
    if lacking := [name for name in report.missing if "lora_" not in name]:
        raise InputError(f"{path}: it lacks {len(lacking)} weights of the part that it fills: {few(lacking)}")
    return frozenset(report.loaded)


class Resized:
    """Weights whose tables of positions have the sizes that a model wants, whatever sizes are stored."""

    def __init__(self, source: TensorSource, wanted: Mapping[str, Tensor]) -> None:
        """Takes the sizes from the tensors of the model that have the same last name."""
        self.label, self._source = source.label, source
        self._sizes = {
            name: size for name in source.entries for size in [_size(name, source.entries[name], wanted)] if size
        }
        self.entries = {
            name: replace(entry, shape=self._sizes.get(name, entry.shape)) for name, entry in source.entries.items()
        }

    def read(self, name: str) -> Tensor:
        """Reads one tensor, resized if need be."""
        tensor = self._source.read(name)
        return _resized(name, tensor, self._sizes[name]) if name in self._sizes else tensor


def _size(stored: str, entry: Entry, wanted: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Returns the shape that a table of positions must have; None for any other tensor, or where it has it."""
    tail = next((part for part in (_CLIP_POSITIONS, _SAM_POSITIONS) if stored.endswith(part)), None)
    if "rel_pos_" in stored:
        tail = ".".join(stored.split(".")[-4:])  # layers.N.attn.rel_pos_h: windows and whole maps differ
    if tail is None:
        return None
    shape = next((tuple(whole_shape(tensor)) for name, tensor in wanted.items() if name.endswith(tail)), None)
    return None if shape in {None, entry.shape} else shape


def _resized(name: str, table: Tensor, shape: tuple[int, ...]) -> Tensor:
    log.info("%s is resized from %s to %s", name, tuple(table.shape), shape)
    if name.endswith(_CLIP_POSITIONS):  # the class token's position, then those of a square
        before, after = (round((length - 1) ** 0.5) for length in (table.shape[0], shape[0]))
        grid_1CHW = table[1:].float().view(before, before, -1).permute(2, 0, 1)[None]
        new_1CHW = functional.interpolate(grid_1CHW, size=(after, after), mode="bicubic", align_corners=False)
        return torch.cat([table[:1], new_1CHW[0].flatten(1).T.to(table.dtype)])
    if name.endswith(_SAM_POSITIONS):
        grid_1CHW = table.float().permute(0, 3, 1, 2)
        new_1CHW = functional.interpolate(grid_1CHW, size=shape[1:3], mode="bicubic", align_corners=False)
        return new_1CHW.permute(0, 2, 3, 1).to(table.dtype)
    line_1CL = table.float().T[None]
    return functional.interpolate(line_1CL, size=shape[0], mode="linear")[0].T.to(table.dtype)
