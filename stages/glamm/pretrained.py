"""Fills a model from weights that others published, tensor by tensor, whole or partitioned by ZeRO-3."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from orchestrator.errors import InputError
from orchestrator.records import record
from orchestrator.training.foreign.adapters import keep_adapter, merge_adapter, read_adapter
from orchestrator.training.foreign.mapping import Layout, fill_from, match, recognise
from orchestrator.training.foreign.opening import open_source
from orchestrator.training.foreign.source import TensorSource, few
from orchestrator.training.holdings import saved_buffers
from orchestrator.training.optim import whole_shape
from orchestrator.training.weights import LoadReport
from stages.adapters import LoraConfig
from stages.glamm.config import SPECIAL_TOKENS, GlammConfig
from stages.glamm.published import ABSENT, EMBEDDINGS, GLAMM, GPT4ROI, GROUNDING, LANGUAGE, VISION, WHOLE

log = logging.getLogger(__name__)

PROMPTER = "region_encoder.prompter."
ROWS_ARE_TOKENS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


@record
class Filled:
    """What became of a model's weights."""

    report: LoadReport  # `missing`: weights that a filled part still lacks
    fresh: tuple[str, ...]  # of no file: drawn from the seed
    sources: Mapping[str, str]  # path -> the layout it was read as

    def facts(self) -> dict[str, Any]:
        """Returns what a manifest says of it."""
        return {
            "sources": dict(self.sources),
            "loaded": len(self.report.loaded),
            "resized": list(self.report.resized),
            "newly_initialised": dict(Counter(_part(name) for name in self.fresh)),  # part -> weights
            "lacking": list(self.report.missing),
            "unused": len(self.report.unexpected),
        }


def fill_from_published(model: nn.Module, config: GlammConfig) -> Filled:
    """Fills every part that has weights named; what comes later wins: parts first, then the weights of the whole.

    Each rank reads the files and keeps what it holds. All names and shapes are compared before any tensor is read: a
    part of which the files have only some weights is refused.
    """
    wanted = {**dict(model.named_parameters()), **dict(saved_buffers(model))}
    opened = [(source, recognise(source, layouts)) for source, layouts in _sources(config)]
    tokens = whole_shape(wanted[ROWS_ARE_TOKENS[0]])[0]
    for source, layout in opened:
        _expect_tokens(tokens, source, layout)
        _mention_quirks(config, source, layout)
    # tokens that other publishers have added to the same tokenizer are others than ours
    growing = dict.fromkeys(ROWS_ARE_TOKENS, tokens - len(SPECIAL_TOKENS))
    planned = [(source, layout, match(wanted, source, layout.rules, growing=growing)) for source, layout in opened]
    report, fresh = _together(wanted, [one for *_, one in planned])
    if strange := [name for name in report.missing if not any(re.fullmatch(form, name) for form in ABSENT)]:
        labels = ", ".join(source.label for source, _ in opened)
        raise InputError(
            f"{labels}: {len(strange)} weights of parts that they fill are lacking: {few(strange)}. A partial "
            "checkpoint is not loaded; allowed: one with all weights of a part, or with none of them"
        )
    for source, layout, _ in planned:
        fill_from(wanted, source, layout.rules, growing=growing)
    sources = {source.label: layout.title for source, layout in opened}
    filled = Filled(report=report, fresh=fresh, sources=sources)
    _tell(filled)
    return filled


def _together(wanted: Collection[str], reports: Sequence[LoadReport]) -> tuple[LoadReport, tuple[str, ...]]:
    """Adds up what each source brings; also names the weights that none has."""
    loaded: set[str] = set()
    resized: set[str] = set()
    for report in reports:
        loaded |= set(report.loaded)
        resized = (resized - set(report.loaded)) | set(report.resized)
    parts = {_whole(name) for name in loaded}
    fresh = sorted(set(wanted) - loaded)
    missing = [name for name in fresh if _whole(name) in parts and "lora_" not in name]
    unused = tuple(name for report in reports for name in report.unexpected)
    whole = LoadReport(
        loaded=tuple(sorted(loaded)), resized=tuple(sorted(resized)), missing=tuple(missing), unexpected=unused
    )
    return whole, tuple(fresh)


def _tell(filled: Filled) -> None:
    for label, title in filled.sources.items():
        log.info("%s read as %s", label, title)
    said = (
        ("resized", filled.report.resized),
        ("newly initialised", filled.fresh),
        ("unused", filled.report.unexpected),
    )
    for word, names in said:
        if names:
            log.info("%d %s: %s", len(names), word, ", ".join(names))


def _expect_tokens(tokens: int, source: TensorSource, layout: Layout) -> None:
    """Refuses weights of another tokenizer: every id would mean something else.

    A GLaMM has learnt the special tokens, so it must have all of them; others have none of them, and their own instead.
    """
    plain = tokens - len(SPECIAL_TOKENS)
    for name, entry in source.entries.items():
        if not re.fullmatch(EMBEDDINGS, name):
            continue
        rows = entry.shape[0]
        if layout is GLAMM and rows != tokens:
            wanted = f"{tokens}"
        elif rows < plain:
            wanted = f"{plain} beside the special ones"
        else:
            continue
        raise InputError(
            f"{source.label} was trained with {rows} tokens, this tokenizer has {wanted}: it is not the one that "
            "belongs to these weights"
        )


def _mention_quirks(config: GlammConfig, source: TensorSource, layout: Layout) -> None:
    """Says which flags the published region encoders were trained with; they are off unless a recipe sets them."""
    if layout not in (GLAMM, GPT4ROI) or (config.roi_side_px == 224 and config.centre_crop):
        return
    log.warning(
        "%s was trained with boxes scaled to 224 px and with centre-cropped pictures: config.model.roi_side_px: 224 "
        "and centre_crop: true reproduce that. Without them regions are where their boxes are, to be learnt anew",
        source.label,
    )


def _whole(name: str) -> str:
    """Names the part of a weight, of which a file has all or nothing: a CLOC has less than a whole region encoder."""
    return PROMPTER if name.startswith(PROMPTER) else name.partition(".")[0]


def _part(name: str) -> str:
    return "adapters" if "lora_" in name else ".".join(name.split(".")[: 2 if name.startswith("sam.") else 1])


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
