"""ClocFamily: brings up a CLOC from a checkpoint, from an export, or with fresh weights."""

from pathlib import Path
from typing import Any

import torch
from transformers.initialization import no_init_weights

from orchestrator.artifacts import Checkpoint, write_json
from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.training.weights import load_into
from stages.cloc.answer import ClocModel
from stages.cloc.config import FAMILY, Blueprint
from stages.cloc.initial import draw_weights
from stages.cloc.model import Cloc
from stages.cloc.task import TOKENIZER, read_blueprint
from stages.exporting import (
    CONFIG,
    PREPROCESSOR,
    fill_from_export,
    open_export,
    write_description,
    write_weights,
)
from stages.family import MERGED
from stages.vision import CLIP_MEAN, CLIP_STD
from stages.wordpieces import FILES, WordPieces

NAME = "Cloc"  # what config.json calls its class


class ClocFamily:
    """What evaluation, export and prediction ask of CLOC."""

    def __init__(self, *, device: str | None = None) -> None:
        """Says where its models work; null: on a GPU if there is one."""
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    def load(self, checkpoint: Path) -> ClocModel:
        """Loads a Checkpoint artifact."""
        model = _build(read_blueprint(Checkpoint(checkpoint)))
        report = load_into(model, checkpoint)
        if report.missing or report.unexpected:
            raise DamagedArtifact(f"{checkpoint} does not fit the model that its manifest describes: {report}")
        return self._ready(model, WordPieces.read(checkpoint / TOKENIZER))

    def untrained(self, checkpoint: Path, *, seed: int) -> ClocModel:
        """Builds the model of this checkpoint with fresh weights, a function of the seed alone."""
        model = _build(read_blueprint(Checkpoint(checkpoint)))
        draw_weights(model, seed)
        return self._ready(model, WordPieces.read(checkpoint / TOKENIZER))

    def export(self, checkpoint: Path, directory: Path, *, card: str, form: str = MERGED) -> dict[str, Any]:
        """Writes safetensors, blueprint, tokenizer, preprocessor and card; returns facts."""
        if form != MERGED:
            raise InputError(f"config.form: a {NAME} has no adapters to export alone; allowed: {MERGED}")
        blueprint = read_blueprint(Checkpoint(checkpoint))
        facts = write_weights(checkpoint, directory, None)
        for name, content in WordPieces.read(checkpoint / TOKENIZER).files().items():
            (directory / name).write_bytes(content)
        write_json(directory / PREPROCESSOR, _preprocessor(blueprint))
        # names of weights and settings of both towers are a CLIP's: whoever reads CLIPs reads these as well
        clip = {"vision_config": blueprint.vision, "text_config": blueprint.text}
        size = {"projection_dim": blueprint.embedding_size}
        write_description(
            directory, model=NAME, model_type=FAMILY, blueprint=blueprint.to_plain(), card=card, others={**clip, **size}
        )  # fmt: skip
        return facts

    def load_export(self, directory: Path) -> ClocModel:
        """Loads what `export` wrote, from that folder alone."""
        found = open_export(directory, model=NAME, model_type=FAMILY, files=FILES)
        try:
            blueprint = Blueprint.from_plain(found.blueprint)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{directory / CONFIG}: its blueprint cannot be read ({error})") from None
        model = _build(blueprint)
        fill_from_export(model, found)
        return self._ready(model, WordPieces.read(directory))

    def _ready(self, model: Cloc, pieces: WordPieces) -> ClocModel:
        model.to(self._device)
        return ClocModel(model, pieces)


def _build(blueprint: Blueprint) -> Cloc:
    """Builds a model whose weights are about to be filled, all of them."""
    with no_init_weights():
        return Cloc(blueprint)


def _preprocessor(blueprint: Blueprint) -> dict[str, Any]:
    """Says how pictures are prepared, for those who read the export without this code."""
    side = blueprint.image_size
    return {
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "size": {"longest_edge": side},
        "pad_size": {"height": side, "width": side},  # right and below
        "resample": 2,  # bilinear
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }
