"""Brings up the task of a training stage: from folders, categories and a tokenizer, or from a checkpoint."""

from collections.abc import Mapping

from orchestrator.artifacts import Checkpoint, Shards, Tokenizer
from orchestrator.errors import InputError
from stages.blueprints import TOKENIZER, read_blueprint
from stages.pix2cap.config import (
    FAMILY,
    AugmentConfig,
    Blueprint,
    Category,
    LossConfig,
    Pix2CapConfig,
    draw_blueprint,
)
from stages.pix2cap.task import Pix2CapTask, Start
from stages.wordpieces import WordPieces


def begin_fresh(
    model: Pix2CapConfig,
    tokenizer: Tokenizer | None,
    shards: Mapping[str, Shards],
    losses: LossConfig,
    augment: AugmentConfig,
) -> Pix2CapTask:
    """Begins with the folders that a model names; parts without one get fresh weights."""
    folder = model.captioner.path if tokenizer is None else tokenizer.path
    if folder is None:
        raise InputError("config.model.captioner.path or inputs.tokenizer must name a tokenizer")
    words = WordPieces.read(folder)
    blueprint = draw_blueprint(model, words.size, read_categories(shards))
    return Pix2CapTask(blueprint, words, start=Start(folders=model), losses=losses, augment=augment)


def begin_from_checkpoint(model: Checkpoint, losses: LossConfig, augment: AugmentConfig) -> Pix2CapTask:
    """Goes on from a checkpoint."""
    words = WordPieces.read(model.path / TOKENIZER)
    start = Start(checkpoint=model.path)
    return Pix2CapTask(read_blueprint(model, FAMILY, Blueprint), words, start=start, losses=losses, augment=augment)


def read_categories(shards: Mapping[str, Shards]) -> list[Category]:
    """Reads the categories that panoptic shards bring along; all must list the same."""
    listed = {name: entry.facts().get("categories") or () for name, entry in shards.items()}
    first, categories = next(iter(listed.items()))
    for name, found in listed.items():
        if not found:
            raise InputError(f"inputs.shards.{name}: its manifest lists no categories; convert a panoptic source anew")
        if found != categories:
            raise InputError(f"inputs.shards.{name}: its categories are not those of {first}")
    return [Category(**one) for one in categories]
