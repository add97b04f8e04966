"""GlammFamily: brings up a GLaMM from a checkpoint, from an export, or with fresh weights."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.initialization import no_init_weights

from orchestrator.artifacts import Checkpoint
from orchestrator.errors import DamagedArtifact
from orchestrator.training import elastic
from orchestrator.training.weights import load_into
from stages.glamm.answer import GlammModel
from stages.glamm.begin import TOKENIZER, read_blueprint
from stages.glamm.config import Blueprint
from stages.glamm.exported import fill_from_export, read_export, write_export
from stages.glamm.initial import draw_weights
from stages.glamm.model import Glamm
from stages.glamm.task import stored_name
from stages.glamm.tokenizer import Vocabulary


class GlammFamily:
    """What evaluation, export and prediction ask of GLaMM."""

    def load(self, checkpoint: Path) -> GlammModel:
        """Loads a Checkpoint artifact, adapters beside the weights they adapt."""
        model = _build(read_blueprint(Checkpoint(checkpoint)))
        stored = elastic.tensors(checkpoint / elastic.WEIGHTS)
        report = load_into(model, checkpoint, rename=lambda name: stored_name(name, stored))
        if report.missing or report.unexpected:
            raise DamagedArtifact(f"{checkpoint} does not fit the model that its manifest describes: {report}")
        return _ready(model, Vocabulary.read(checkpoint / TOKENIZER))

    def untrained(self, checkpoint: Path, *, seed: int) -> GlammModel:
        """Builds the model of this checkpoint with fresh weights, a function of the seed alone."""
        model = _build(read_blueprint(Checkpoint(checkpoint)))
        draw_weights(model, seed)
        return _ready(model, Vocabulary.read(checkpoint / TOKENIZER))

    def export(self, checkpoint: Path, directory: Path, *, card: str) -> dict[str, Any]:
        """Writes safetensors with adapters merged, config, tokenizer, preprocessor and card; returns facts."""
        blueprint = read_blueprint(Checkpoint(checkpoint))
        vocabulary = Vocabulary.read(checkpoint / TOKENIZER)
        return write_export(checkpoint, directory, blueprint, vocabulary, card=card)

    def load_export(self, directory: Path) -> GlammModel:
        """Loads what `export` wrote, from that folder alone."""
        found = read_export(directory)
        model = _build(found.blueprint)
        fill_from_export(model, found)
        return _ready(model, found.vocabulary)


def _build(blueprint: Blueprint) -> Glamm:
    with no_init_weights():  # every weight is about to be filled
        model = Glamm(blueprint)
    for part in (model.language_model, model.vision_tower, model.sam):
        part.tie_weights()  # which the above leaves out as well
    return model


def _ready(model: Glamm, vocabulary: Vocabulary) -> GlammModel:
    placed: nn.Module = model.float().to("cuda" if torch.cuda.is_available() else "cpu")
    assert isinstance(placed, Glamm)  # noqa: S101 - it is the same object
    return GlammModel(placed, vocabulary)
