"""Brings up the task of a training stage: from folders and a tokenizer, or from the checkpoint before it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.artifacts import Checkpoint, Shards, Tokenizer
from orchestrator.errors import InputError
from stages.blueprints import TOKENIZER, read_blueprint
from stages.pixclip.config import FAMILY, TEXTS_FACT, Blueprint, PixClipConfig, draw_blueprint
from stages.pixclip.stages import PixClipContrastive
from stages.pixclip.task import Branches, PixClipTask, Start
from stages.wordpieces import WordPieces


def begin_fresh(
    config: PixClipContrastive.Config, model: PixClipConfig, shards: Mapping[str, Shards], tokenizer: Tokenizer | None
) -> PixClipTask:
    """Begins with the folders that a model names; parts without one get fresh weights."""
    start = Start(folders=model)
    if model.text is None:
        return _task(config, draw_blueprint(model, encoder=encoder_of(shards)), None, start)
    if tokenizer is None:
        raise InputError("inputs.tokenizer is needed, because config.model.text begins a text model")
    pieces = WordPieces.read(tokenizer.path)
    return _task(config, draw_blueprint(model, vocabulary_size=pieces.size), pieces, start)


def begin_from_checkpoint(
    config: PixClipContrastive.Config, shards: Mapping[str, Shards], model: Checkpoint
) -> PixClipTask:
    """Goes on from a checkpoint, with texts in the form that it has learnt from."""
    blueprint = read_blueprint(model, FAMILY, Blueprint)
    if blueprint.encoder is not None and encoder_of(shards)["digest"] != blueprint.encoder["digest"]:
        raise InputError(
            "inputs.shards: their texts were embedded by another language model than inputs.model learnt from"
        )
    return _task(config, blueprint, read_pieces(model.path, blueprint), Start(checkpoint=model.path))


def read_pieces(folder: Path, blueprint: Blueprint) -> WordPieces | None:
    """Reads the tokenizer beside the weights; None where the model has no text model."""
    return None if blueprint.text is None else WordPieces.read(folder / TOKENIZER)


def encoder_of(shards: Mapping[str, Shards]) -> dict[str, Any]:
    """Reads which language model has embedded the texts of shards; refuses shards of several, or of none."""
    known = {name: entry.facts().get(TEXTS_FACT) for name, entry in sorted(shards.items())}
    for name, about in known.items():
        if about is None:
            raise InputError(
                f"inputs.shards.{name}: {shards[name].path} has no embedded texts: let pixclip_text_embeddings keep "
                "some, or give config.model.text"
            )
    found: dict[str, dict[str, Any]] = {about["digest"]: about for about in known.values() if about is not None}
    if len(found) != 1:
        raise InputError(f"inputs.shards: their texts are of {len(found)} language models; allowed: the same for all")
    (about,) = found.values()
    return {name: value for name, value in about.items() if name != "left_out"}


def _task(
    config: PixClipContrastive.Config, blueprint: Blueprint, pieces: WordPieces | None, start: Start
) -> PixClipTask:
    branches = Branches(
        masked=config.masked_weight,
        crop=config.crop_weight,
        roi=config.roi_weight,
        roi_against=config.roi_against,
        conflict=config.conflict_cosine,
    )
    return PixClipTask(
        blueprint,
        pieces,
        start=start,
        branches=branches,
        crop_scale=config.crop_scale,
        whole_share=config.whole_share,
        images_at_once=config.images_at_once,
    )
