"""Brings up the task of a training stage: from a CLIP's folder or nothing, or from the checkpoint before it."""

from pathlib import Path
from typing import Protocol

from orchestrator.artifacts import Checkpoint, Tokenizer
from orchestrator.errors import InputError
from stages.blueprints import TOKENIZER, read_blueprint
from stages.cloc.config import FAMILY, Blueprint, ClocConfig, draw_blueprint
from stages.cloc.task import ClocTask, Start, Weights
from stages.wordpieces import WordPieces


class _Losses(Protocol):
    @property
    def max_regions(self) -> int: ...
    @property
    def chunk(self) -> int | None: ...
    @property
    def region_weight(self) -> float: ...
    @property
    def grounding_weight(self) -> float: ...
    @property
    def conflict(self) -> float | None: ...
    @property
    def squared_boxes(self) -> bool: ...


def begin_fresh(config: _Losses, model: ClocConfig, tokenizer: Tokenizer | None) -> ClocTask:
    """Begins with the CLIP that a model names; parts without one get fresh weights."""
    folder = model.tokenizer_folder() if tokenizer is None else tokenizer.path
    if folder is None:
        raise InputError("config.model.tokenizer, config.model.path or inputs.tokenizer must name a tokenizer")
    pieces = WordPieces.read(folder)
    return ClocTask(
        draw_blueprint(model, pieces.size), pieces, start=Start(clip=model.path), weights=_weights(config),
        max_regions=config.max_regions, chunk=config.chunk,
    )  # fmt: skip


def begin_from_checkpoint(config: _Losses, model: Checkpoint) -> ClocTask:
    """Goes on from a checkpoint."""
    pieces: WordPieces = WordPieces.read(Path(model.path) / TOKENIZER)
    return ClocTask(
        read_blueprint(model, FAMILY, Blueprint), pieces, start=Start(checkpoint=model.path), weights=_weights(config),
        max_regions=config.max_regions, chunk=config.chunk,
    )  # fmt: skip


def _weights(config: _Losses) -> Weights:
    return Weights(
        region=config.region_weight, grounding=config.grounding_weight, conflict=config.conflict,
        squared=config.squared_boxes,
    )  # fmt: skip
