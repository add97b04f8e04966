"""Fills a PixCLIP from weights that others published: a CLIP's image tower, then an LLM2CLIP's parts over it."""

import logging
from collections import Counter
from typing import Any

from torch import nn

from orchestrator.errors import InputError
from orchestrator.training.foreign.mapping import Layout, fill_from, match, recognise
from orchestrator.training.foreign.opening import open_source
from orchestrator.training.foreign.source import TensorSource, few
from stages.pixclip.config import PixClipConfig
from stages.pixclip.published import CLIP, LLM2CLIP

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
        opened.append((open_source(config.vision.path), CLIP))
    if config.weights is not None:
        source = open_source(config.weights)
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
