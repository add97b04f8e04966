"""GlammFamily: brings up a GLaMM from a checkpoint, from an export, or with fresh weights."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.initialization import no_init_weights

from orchestrator.artifacts import Checkpoint
from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.training import elastic
from orchestrator.training.foreign.source import few
from orchestrator.training.weights import load_into
from stages.adapters import stored_name
from stages.exporting import fill_from_export
from stages.family import ADAPTER, MERGED
from stages.glamm.adopted import read_adopted
from stages.glamm.answer import GlammModel
from stages.glamm.begin import TOKENIZER, read_blueprint
from stages.glamm.config import Blueprint
from stages.glamm.exported import read_export, write_export
from stages.glamm.exported_adapter import write_adapter
from stages.glamm.initial import draw_weights
from stages.glamm.model import Glamm
from stages.glamm.pretrained import fill_from_published
from stages.glamm.tokenizer import Vocabulary


class GlammFamily:
    """What evaluation, export and prediction ask of GLaMM."""

    def __init__(self, *, device: str | None = None, dtype: torch.dtype = torch.float32) -> None:
        """Says where its models work, and in which type; null: on a GPU if there is one."""
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = dtype

    def load(self, checkpoint: Path) -> GlammModel:
        """Loads a Checkpoint artifact, adapters beside the weights they adapt."""
        model = _build(read_blueprint(Checkpoint(checkpoint)))
        stored = elastic.tensors(checkpoint / elastic.WEIGHTS)
        report = load_into(model, checkpoint, rename=lambda name: stored_name(name, stored))
        if report.missing or report.unexpected:
            raise DamagedArtifact(f"{checkpoint} does not fit the model that its manifest describes: {report}")
        return self._ready(model, Vocabulary.read(checkpoint / TOKENIZER))

    def untrained(self, checkpoint: Path, *, seed: int) -> GlammModel:
        """Builds the model of this checkpoint with fresh weights, a function of the seed alone."""
        model = _build(read_blueprint(Checkpoint(checkpoint)))
        draw_weights(model, seed)
        return self._ready(model, Vocabulary.read(checkpoint / TOKENIZER))

    def export(self, checkpoint: Path, directory: Path, *, card: str, form: str = MERGED) -> dict[str, Any]:
        """Writes safetensors with adapters merged, or the adapter alone, tokenizer and card; returns facts."""
        blueprint = read_blueprint(Checkpoint(checkpoint))
        vocabulary = Vocabulary.read(checkpoint / TOKENIZER)
        if form == ADAPTER:
            return write_adapter(checkpoint, directory, blueprint, vocabulary, card=card)
        return write_export(checkpoint, directory, blueprint, vocabulary, card=card)

    def load_export(self, directory: Path) -> GlammModel:
        """Loads what `export` wrote merged, from that folder alone."""
        found = read_export(directory)
        model = _build(found.blueprint, self._dtype)
        fill_from_export(model, found.opened)
        return self._ready(model, found.vocabulary)

    def adopt(self, folder: Path, vision: Path) -> GlammModel:
        """Loads a GLaMM as its authors publish it, with the CLIP of another folder, quirks included."""
        found = read_adopted(folder, vision)
        model = _build(found.blueprint, self._dtype)
        filled = fill_from_published(model, found.config)
        if strange := [name for name in filled.fresh if name not in filled.report.missing]:
            raise InputError(f"{folder} is no whole GLaMM: nothing fills {few(strange)}")
        draw_weights(model, 0, keep=filled.report.loaded)  # biases that the published model lacks begin at zero
        return self._ready(model, found.vocabulary)

    def _ready(self, model: Glamm, vocabulary: Vocabulary) -> GlammModel:
        placed: nn.Module = model.to(device=self._device, dtype=self._dtype)
        assert isinstance(placed, Glamm)  # noqa: S101 - it is the same object
        return GlammModel(placed, vocabulary)


def _build(blueprint: Blueprint, dtype: torch.dtype = torch.float32) -> Glamm:
    """Builds a model whose weights are about to be filled, all of them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # so that a large model never takes the memory of float32
    try:
        with no_init_weights():
            model = Glamm(blueprint)
    finally:
        torch.set_default_dtype(before)
    for part in (model.language_model, model.vision_tower, model.sam):
        part.tie_weights()  # which the above leaves out as well
    return model
