"""Pix2CapFamily: brings up a Pix2Cap from a checkpoint, from an export, or with fresh weights."""

from pathlib import Path
from typing import Any

import torch
from transformers.initialization import no_init_weights

from orchestrator.artifacts import Checkpoint, write_json
from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.training.weights import load_into
from stages.exporting import PREPROCESSOR, fill_from_export, open_export, write_description, write_weights
from stages.family import MERGED
from stages.pix2cap.answer import Pix2CapModel
from stages.pix2cap.begin import TOKENIZER, read_blueprint
from stages.pix2cap.config import FAMILY, Blueprint
from stages.pix2cap.initial import draw_weights
from stages.pix2cap.model import Pix2Cap
from stages.vision import IMAGENET_MEAN, IMAGENET_STD
from stages.wordpieces import FILES, WordPieces

MODEL = "Pix2Cap"


class Pix2CapFamily:
    """What evaluation, export and prediction ask of Pix2Cap."""

    def __init__(self, *, device: str | None = None) -> None:
        """Says where its models work; null: on a GPU if there is one."""
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    def load(self, checkpoint: Path) -> Pix2CapModel:
        """Loads a Checkpoint artifact."""
        model = _build(read_blueprint(Checkpoint(checkpoint)))
        report = load_into(model, checkpoint)
        if report.missing or report.unexpected:
            raise DamagedArtifact(f"{checkpoint} does not fit the model that its manifest describes: {report}")
        return self._ready(model, WordPieces.read(checkpoint / TOKENIZER))

    def untrained(self, checkpoint: Path, *, seed: int) -> Pix2CapModel:
        """Builds the model of this checkpoint with fresh weights, a function of the seed alone."""
        model = _build(read_blueprint(Checkpoint(checkpoint)))
        draw_weights(model, seed)
        return self._ready(model, WordPieces.read(checkpoint / TOKENIZER))

    def export(self, checkpoint: Path, directory: Path, *, card: str, form: str = MERGED) -> dict[str, Any]:
        """Writes safetensors, config, tokenizer, preprocessor and card; returns facts."""
        if form != MERGED:
            raise InputError(f"config.form: a Pix2Cap has no adapters, so {form!r} cannot be; allowed: {MERGED!r}")
        blueprint = read_blueprint(Checkpoint(checkpoint))
        facts = write_weights(checkpoint, directory, None)
        for name, content in WordPieces.read(checkpoint / TOKENIZER).files().items():
            (directory / name).write_bytes(content)
        write_json(directory / PREPROCESSOR, _preprocessor(blueprint))
        write_description(directory, model=MODEL, model_type=FAMILY, blueprint=blueprint.to_plain(), card=card)
        return facts

    def load_export(self, directory: Path) -> Pix2CapModel:
        """Loads what `export` wrote, from that folder alone."""
        found = open_export(directory, model=MODEL, model_type=FAMILY, files=FILES)
        try:
            blueprint = Blueprint.from_plain(found.blueprint)
        except (KeyError, TypeError) as error:
            raise InputError(f"{directory}: the blueprint of its config.json cannot be read ({error})") from None
        model = _build(blueprint)
        fill_from_export(model, found)
        return self._ready(model, WordPieces.read(directory))

    def _ready(self, model: Pix2Cap, words: WordPieces) -> Pix2CapModel:
        model.to(self._device)
        return Pix2CapModel(model, words)


def _build(blueprint: Blueprint) -> Pix2Cap:
    """Builds a model whose weights are about to be filled, all of them."""
    with no_init_weights():
        return Pix2Cap(blueprint)


def _preprocessor(blueprint: Blueprint) -> dict[str, Any]:
    """Says how pictures are prepared, for those who read the export without this code."""
    side = blueprint.image_px
    return {
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "size": {"longest_edge": side},
        "pad_size": {"height": side, "width": side},  # right and below
        "resample": 2,  # bilinear
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }
