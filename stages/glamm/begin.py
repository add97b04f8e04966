"""Brings up the task of a training stage: from model folders and a tokenizer, or from the checkpoint before it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from orchestrator.artifacts import Checkpoint, Export, Tokenizer
from orchestrator.errors import InputError
from stages import blueprints
from stages.adapters import LoraConfig
from stages.blueprints import TOKENIZER
from stages.glamm.config import FAMILY, Blueprint, GlammConfig, draw_blueprint
from stages.glamm.task import GlammTask, Start, Weights
from stages.glamm.tokenizer import Vocabulary
from stages.glamm.words import WordsTask, rarities
from stages.point_rule import PointRule


class _Losses(Protocol):
    @property
    def text_weight(self) -> float: ...
    @property
    def bce_weight(self) -> float: ...
    @property
    def dice_weight(self) -> float: ...
    @property
    def mask_side_px(self) -> int | None: ...
    @property
    def mask_points(self) -> PointRule | None: ...
    @property
    def max_regions(self) -> int: ...
    @property
    def max_targets(self) -> int: ...
    @property
    def wordings(self) -> int | None: ...
    @property
    def features(self) -> bool: ...


class _Tuned(_Losses, Protocol):
    @property
    def lora(self) -> LoraConfig | None: ...


class _Brought(Protocol):
    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def vision(self) -> Export | None: ...


def begin_fresh(config: _Losses, model: GlammConfig, kinds: Mapping[str, str], brought: _Brought) -> GlammTask:
    """Begins with the folders that a model names or is brought; parts without one, and new ones, get fresh weights."""
    model, vocabulary = _seeing(model, brought.vision), _vocabulary(model, brought.tokenizer)
    return _task(config, kinds, draw_blueprint(model, vocabulary.size), vocabulary, Start(folders=model))


def begin_with_words(model: GlammConfig, brought: _Brought, shards: Sequence[Path], *, max_regions: int) -> WordsTask:
    """Begins as `begin_fresh` does, to read words off image tokens first."""
    model, vocabulary = _seeing(model, brought.vision), _vocabulary(model, brought.tokenizer)
    blueprint, start = draw_blueprint(model, vocabulary.size), Start(folders=model)
    glamm = GlammTask(blueprint, vocabulary, {}, start=start, weights=Weights(), max_regions=max_regions)
    return WordsTask(glamm, rarities(vocabulary, shards), max_regions=max_regions)


def begin_from_checkpoint(config: _Tuned, kinds: Mapping[str, str], model: Checkpoint) -> GlammTask:
    """Goes on from a checkpoint, with new adapters where the config asks for some."""
    blueprint = read_blueprint(model)
    if config.lora is not None:
        if blueprint.lora not in {None, config.lora}:
            raise InputError(
                f"config.lora: the checkpoint already has adapters {blueprint.lora}; ask for the same or null"
            )
        blueprint = replace(blueprint, lora=config.lora)
    vocabulary = Vocabulary.read(model.path / TOKENIZER)
    return _task(config, kinds, blueprint, vocabulary, Start(checkpoint=model.path))


def read_blueprint(model: Checkpoint) -> Blueprint:
    """Reads what a checkpoint says about its model."""
    return blueprints.read_blueprint(model, FAMILY, Blueprint)


def _seeing(model: GlammConfig, vision: Export | None) -> GlammConfig:
    return model if vision is None else replace(model, vision=replace(model.vision, path=vision.path))


def _vocabulary(model: GlammConfig, tokenizer: Tokenizer | None) -> Vocabulary:
    folder = model.language.path if tokenizer is None else tokenizer.path
    if folder is None:
        raise InputError("config.model.language.path or inputs.tokenizer must name a tokenizer")
    return Vocabulary.read(folder)


def _task(
    config: _Losses, kinds: Mapping[str, str], blueprint: Blueprint, vocabulary: Vocabulary, start: Start
) -> GlammTask:
    weights = Weights(
        text=config.text_weight,
        bce=config.bce_weight,
        dice=config.dice_weight,
        mask_side_px=config.mask_side_px,
        mask_points=config.mask_points,
    )
    return GlammTask(
        blueprint,
        vocabulary,
        kinds,
        start=start,
        weights=weights,
        max_regions=config.max_regions,
        max_targets=config.max_targets,
        wordings=config.wordings,
        features=config.features,
    )
