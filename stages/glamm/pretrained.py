"""Fills a model from weights that others published, tensor by tensor, whole or partitioned by ZeRO-3."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from orchestrator.errors import InputError
from orchestrator.training.foreign.adapters import keep_adapter, merge_adapter, read_adapter
from orchestrator.training.foreign.mapping import Layout, fill_from, recognise
from orchestrator.training.foreign.opening import open_source
from orchestrator.training.foreign.source import TensorSource
from orchestrator.training.holdings import saved_buffers
from orchestrator.training.weights import LoadReport
from stages.glamm.config import GlammConfig, LoraConfig
from stages.glamm.published import GROUNDING, LANGUAGE, VISION, WHOLE

log = logging.getLogger(__name__)

GROWING = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


def fill_from_published(model: nn.Module, config: GlammConfig) -> LoadReport:
    """Fills every part that has weights named; what comes later wins: parts first, then the weights of the whole.

    Each rank reads the files and keeps what it holds. Of `missing` are the weights that a filled part still lacks.
    """
    wanted = {**dict(model.named_parameters()), **dict(saved_buffers(model))}
    loaded: set[str] = set()
    resized: set[str] = set()
    unused: list[str] = []
    for source, layouts in _sources(config):
        layout = recognise(source, layouts)
        report = fill_from(wanted, source, layout.rules, growing=GROWING)
        log.info("%s read as %s: %d weights", source.label, layout.title, len(report.loaded))
        if report.unexpected:
            log.info("unused in %s: %s", source.label, ", ".join(report.unexpected))
        loaded |= set(report.loaded)
        resized = (resized - set(report.loaded)) | set(report.resized)
        unused += report.unexpected
    parts = {name.split(".")[0] for name in loaded}
    fresh = sorted(set(wanted) - loaded)
    missing = [name for name in fresh if name.split(".")[0] in parts and "lora_" not in name]
    for word, names in (("newly initialised", fresh), ("resized", sorted(resized))):
        if names:
            log.info("%s: %s", word, ", ".join(names))
    return LoadReport(
        loaded=tuple(sorted(loaded)), resized=tuple(sorted(resized)), missing=tuple(missing), unexpected=tuple(unused)
    )


def _sources(config: GlammConfig) -> Iterator[tuple[TensorSource, Sequence[Layout]]]:
    if config.vision.path is not None:
        yield open_source(config.vision.path), VISION
    if config.grounding.path is not None:
        yield open_source(config.grounding.path), GROUNDING
    if config.language.path is not None:
        language = open_source(config.language.path)
        if config.language.adapter is not None:
            language = _adapted(language, config.language.adapter, config.lora)
        yield language, LANGUAGE
    if config.weights is not None:
        yield open_source(config.weights), WHOLE


def _adapted(language: TensorSource, folder: Path, lora: LoraConfig | None) -> TensorSource:
    """Merges an adapter, or keeps it where the model has adapters of the same strength."""
    adapter = read_adapter(folder)
    if lora is None:
        return merge_adapter(language, adapter)
    scale = lora.alpha / lora.rank
    if adapter.rank != lora.rank or any(extra.scale != scale for extra in adapter.added.values()):
        raise InputError(
            f"config.model.lora: rank {lora.rank} and alpha {lora.alpha} are asked for, {folder} has rank "
            f"{adapter.rank} and alpha {adapter.alpha:g}; allowed: the same, or null, which merges the adapter"
        )
    return keep_adapter(language, adapter)
