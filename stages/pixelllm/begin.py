"""Brings up the task of a training stage: from model folders and a tokenizer, or from the checkpoint before it."""

from collections.abc import Mapping

from orchestrator.artifacts import Checkpoint, Tokenizer
from orchestrator.errors import InputError
from stages.blueprints import TOKENIZER, read_blueprint
from stages.pixelllm.collate import Limits
from stages.pixelllm.config import FAMILY, Blueprint, draw_blueprint
from stages.pixelllm.stages import PixelLLMStage, lacking_parts, with_parts
from stages.pixelllm.task import PixelLLMTask, Start, Weights
from stages.pixelllm.tasks import Rules
from stages.wordpieces import WordPieces


def begin(
    config: PixelLLMStage.Config, kinds: Mapping[str, str], *, tokenizer: Tokenizer | None, model: Checkpoint | None
) -> PixelLLMTask:
    """Goes on from `model`, or begins with the folders of `config.model`; parts without one get fresh weights."""
    if model is not None:
        pieces, blueprint = WordPieces.read(model.path / TOKENIZER), read_blueprint(model, FAMILY, Blueprint)
        blueprint = with_parts(blueprint, config)
        start = Start(checkpoint=model.path, masks=None if config.masks is None else config.masks.path)
    else:
        assert config.model is not None  # noqa: S101 - planning has checked that one of the two is there
        folder = config.model.language.path if tokenizer is None else tokenizer.path
        if folder is None:
            raise InputError("config.model.language.path or inputs.tokenizer must name a tokenizer")
        pieces = WordPieces.read(folder)
        blueprint, start = draw_blueprint(config.model, pieces.size), Start(folders=config.model)
    if lacking := lacking_parts(blueprint, kinds):  # planning may not have known the model
        raise InputError("; ".join(f"{key}: {text}" for key, text in lacking.items()))
    return PixelLLMTask(
        blueprint,
        pieces,
        kinds,
        start=start,
        weights=Weights(
            caption=config.caption_weight,
            location=config.location_weight,
            detection=config.detection_weight,
            mask=config.mask_weight,
            smoothing=config.label_smoothing,
        ),
        rules=Rules(
            max_regions=config.max_regions,
            max_expressions=config.max_expressions,
            wordings=config.wordings,
            augments=config.augments,
        ),
        limits=Limits(text=config.max_text_tokens, context=config.max_context_tokens),
    )
