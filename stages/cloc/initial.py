"""What the weights of a CLOC begin with: drawn from the seed, or a published CLIP's towers."""

import logging
import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from orchestrator.errors import InputError
from orchestrator.training.foreign.mapping import Layout, fill_from, recognise, rules_of
from orchestrator.training.foreign.opening import open_source
from orchestrator.training.foreign.source import few
from orchestrator.training.weights import LoadReport, fill
from stages.cloc.model import FIRST_SCALE
from stages.fresh import Spread, draw_fresh

log = logging.getLogger(__name__)

ATTENTION_GAIN = 1.5  # of queries and keys: attention that begins sharp finds what matters sooner
POSITION_STD = 0.3
SCALE = "logit_scale"
CLIP_LAYOUT = Layout(
    title="CLIP (transformers)",
    sign=r"text_model\.embeddings\.token_embedding\.weight",
    rules=rules_of(
        (r"(?:text|vision)_model\.embeddings\.position_ids", None),
        (r"((?:vision_model|text_model|visual_projection|text_projection)\..+)", r"\1"),
        (SCALE, None),
    ),
)


def draw_weights(model: nn.Module, seed: int, *, keep: Collection[str] = ()) -> None:
    """Fills every weight that is not to be kept; each rank writes what it holds of it. Scales begin where CLIP's do."""
    scales = {name: parameter for name, parameter in model.named_parameters() if name.endswith(SCALE)}
    draw_fresh(model, seed, spread=spread_in(model), keep={*keep, *scales})
    for name, parameter in scales.items():
        if name not in keep:
            fill(parameter, torch.full((1,), math.log(FIRST_SCALE)))


def fill_from_clip(model: nn.Module, folder: Path) -> LoadReport:
    """Fills both towers and the scale; a folder that lacks a weight of theirs is refused.

    Each rank reads what it holds.
    """
    source = open_source(folder)
    layout = recognise(source, [CLIP_LAYOUT])
    report = fill_from(dict(model.named_parameters()), source, layout.rules)
    towers = ("vision_model.", "text_model.", "visual_projection.", "text_projection.")
    if lacking := [name for name in report.missing if name.startswith(towers)]:
        raise InputError(f"{source.label} lacks {few(lacking)}: a whole CLIP is needed")
    if SCALE in source.entries:  # a bare number there
        fill(dict(model.named_parameters())[SCALE], source.read(SCALE).float().reshape(1))
        report = replace(report, loaded=(*report.loaded, SCALE), missing=_without(SCALE, report.missing),
                         unexpected=_without(SCALE, report.unexpected))  # fmt: skip
    log.info("%d weights begin fresh: %s", len(report.missing), few(list(report.missing)))
    return report


def _without(name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(one for one in names if one != name)


def spread_in(model: nn.Module) -> Spread:
    """Says how far the first values of a model's weights spread, where it matters.

    What a block adds to its stream is scaled down by their number, so that the stream does not grow with depth.
    """
    ends = ("out_proj", "fc2")
    blocks = {
        part: max(1, sum(name.startswith(part) and name.endswith("fc2") for name, _ in model.named_modules()))
        for part in ("vision_model.", "text_model.", "prompter.")
    }

    def spread(path: str, module: nn.Module, leaf: str, shape: torch.Size) -> float | None:
        if leaf == "class_embedding" or path.endswith("position_embedding"):
            return POSITION_STD
        if isinstance(module, nn.Linear) and leaf == "weight":
            depth = next((2 * count for part, count in blocks.items() if path.startswith(part)), 1)
            gain = ATTENTION_GAIN if path.endswith(("q_proj", "k_proj")) else 1.0
            return gain / math.sqrt(shape[1] * (depth if path.endswith(ends) else 1))
        return None

    return spread
