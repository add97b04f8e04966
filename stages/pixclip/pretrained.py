"""Fills a PixCLIP from weights that others published: an image tower, then an LLM2CLIP's parts over it.

An EVA02's sizes are the recipe's and not the file's: its table of positions is resized where its grid is another.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from orchestrator.errors import InputError
from orchestrator.training.foreign.mapping import Layout, fill_from, match, recognise
from orchestrator.training.foreign.source import TensorSource, few
from stages.eva_weights import open_tower
from stages.pixclip.config import PixClipConfig
from stages.pixclip.published import LLM2CLIP, TOWERS
from stages.positions import Resized

OURS = ("embeddings.patch_embedding.alpha.weight",)  # what no publisher's tower has

log = logging.getLogger(__name__)


def fill_from_published(model: nn.Module, config: PixClipConfig) -> tuple[frozenset[str], dict[str, Any]]:
    """Fills what the folders have; returns the names of these weights, and what a manifest says of it.

    Each rank reads the files and keeps what it holds. All names and shapes are compared before any tensor is read: a
    part of which the files have only some weights is refused.
    """
    wanted = dict(model.named_parameters())
    opened: list[tuple[TensorSource, Layout]] = []
    if config.vision.path is not None:
        opened.append((_opened(config, config.vision.path, wanted), TOWERS[config.vision.kind]))
    if config.weights is not None:
        source = _opened(config, config.weights, wanted)
        opened.append((source, recognise(source, (LLM2CLIP,))))
    loaded: set[str] = set()
    for source, layout in opened:
        loaded |= set(match(wanted, source, layout.rules).loaded)
    parts = {name.split(".")[0] for name in loaded}
    lacking = [n for n in wanted if n not in loaded and n.split(".")[0] in parts and not n.endswith(OURS)]
    if lacking:
        labels = ", ".join(source.label for source, _ in opened)
        raise InputError(
            f"{labels}: {len(lacking)} weights of parts that they fill are lacking: {few(lacking)}. A partial "
            "checkpoint is not loaded; allowed: one with all weights of a part, or with none of them"
        )
    for source, layout in opened:
        fill_from(wanted, source, layout.rules)
        log.info("%s read as %s", source.label, layout.title)
    fresh = Counter(name.split(".")[0] for name in wanted if name not in loaded)
    sources = {source.label: layout.title for source, layout in opened}
    facts = {"sources": sources, "loaded": len(loaded), "newly_initialised": dict(fresh)} if opened else {}
    return frozenset(loaded), facts


def _opened(config: PixClipConfig, path: Path, wanted: Mapping[str, Tensor]) -> TensorSource:
    source = open_tower(config.vision.kind, path)
    return Resized(source, wanted) if config.vision.kind == "eva02" else source
