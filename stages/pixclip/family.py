"""PixClipFamily: brings up a PixCLIP from a checkpoint, from an export, or with fresh weights."""

from pathlib import Path
from typing import Any

import torch
from transformers.initialization import no_init_weights

from orchestrator.artifacts import Checkpoint
from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.training.weights import load_into
from stages.exporting import fill_from_export
from stages.family import MERGED
from stages.pixclip.answer import PixClipModel
from stages.pixclip.begin import read_blueprint, read_pieces
from stages.pixclip.config import Blueprint
from stages.pixclip.exported import read_export, write_export
from stages.pixclip.initial import draw_weights
from stages.pixclip.model import PixClip
from stages.wordpieces import WordPieces


class PixClipFamily:
    """What evaluation, export and prediction ask of PixCLIP."""

    def __init__(self, *, device: str | None = None) -> None:
        """Says where its models work; null: on a GPU if there is one."""
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    def load(self, checkpoint: Path) -> PixClipModel:
        """Loads a Checkpoint artifact."""
        blueprint = read_blueprint(Checkpoint(checkpoint))
        model = _build(blueprint)
        report = load_into(model, checkpoint)
        if report.missing or report.unexpected:
            raise DamagedArtifact(f"{checkpoint} does not fit the model that its manifest describes: {report}")
        return self._ready(model, read_pieces(checkpoint, blueprint))

    def untrained(self, checkpoint: Path, *, seed: int) -> PixClipModel:
        """Builds the model of this checkpoint with fresh weights, a function of the seed alone."""
        blueprint = read_blueprint(Checkpoint(checkpoint))
        model = _build(blueprint)
        draw_weights(model, seed)
        return self._ready(model, read_pieces(checkpoint, blueprint))

    def export(self, checkpoint: Path, directory: Path, *, card: str, form: str = MERGED) -> dict[str, Any]:
        """Writes safetensors, config, preprocessor, card, and the tokenizer if the model has one; returns facts."""
        if form != MERGED:
            raise InputError(f"form: a PixCLIP has no adapter to write alone; allowed: {MERGED}")
        blueprint = read_blueprint(Checkpoint(checkpoint))
        return write_export(checkpoint, directory, blueprint, read_pieces(checkpoint, blueprint), card=card)

    def load_export(self, directory: Path) -> PixClipModel:
        """Loads what `export` wrote, from that folder alone; a language model outside it is opened when texts come."""
        found = read_export(directory)
        model = _build(found.blueprint)
        fill_from_export(model, found.opened)
        return self._ready(model, found.pieces)

    def _ready(self, model: PixClip, pieces: WordPieces | None) -> PixClipModel:
        placed = model.to(self._device)
        return PixClipModel(placed, pieces)


def _build(blueprint: Blueprint) -> PixClip:
    """Builds a model whose weights are about to be filled, all of them."""
    with no_init_weights():
        return PixClip(blueprint)
