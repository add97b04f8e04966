"""PixelLLMFamily: brings up a PixelLLM from a checkpoint, from an export, or with fresh weights."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator.artifacts import Checkpoint
from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.training import elastic
from orchestrator.training.weights import load_into
from stages.adapters import stored_name
from stages.exporting import CONFIG, fill_from_export, open_export, write_description, write_weights
from stages.family import MERGED
from stages.pixelllm.answer import PixelLLMModel
from stages.pixelllm.begin import TOKENIZER, read_blueprint
from stages.pixelllm.config import FAMILY, Blueprint
from stages.pixelllm.initial import draw_weights
from stages.pixelllm.model import PixelLLM
from stages.wordpieces import FILES, WordPieces

MODEL = "PixelLLM"


class PixelLLMFamily:
    """What evaluation, export and prediction ask of PixelLLM."""

    def __init__(self, *, device: str | None = None, dtype: torch.dtype = torch.float32) -> None:
        """Says where its models work, and in which type; null: on a GPU if there is one."""
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = dtype

    def load(self, checkpoint: Path) -> PixelLLMModel:
        """Loads a Checkpoint artifact, adapters beside the weights they adapt."""
        model = PixelLLM(read_blueprint(Checkpoint(checkpoint)))
        stored = elastic.tensors(checkpoint / elastic.WEIGHTS)
        report = load_into(model, checkpoint, rename=lambda name: stored_name(name, stored))
        if report.missing or report.unexpected:
            raise DamagedArtifact(f"{checkpoint} does not fit the model that its manifest describes: {report}")
        return self._ready(model, WordPieces.read(checkpoint / TOKENIZER))

    def untrained(self, checkpoint: Path, *, seed: int) -> PixelLLMModel:
        """Builds the model of this checkpoint with fresh weights, a function of the seed alone."""
        model = PixelLLM(read_blueprint(Checkpoint(checkpoint)))
        draw_weights(model, seed)
        return self._ready(model, WordPieces.read(checkpoint / TOKENIZER))

    def export(self, checkpoint: Path, directory: Path, *, card: str, form: str = MERGED) -> dict[str, Any]:
        """Writes safetensors with adapters merged, config, tokenizer and card; returns facts."""
        if form != MERGED:
            raise InputError(f"config.form: a PixelLLM is exported {MERGED} only: the adapter alone sees nothing")
        blueprint = read_blueprint(Checkpoint(checkpoint))
        facts = write_weights(checkpoint, directory, blueprint.lora)
        for name, content in WordPieces.read(checkpoint / TOKENIZER).files().items():
            (directory / name).write_bytes(content)
        plain = {**blueprint.to_plain(), "lora": None}  # the adapters are merged
        write_description(directory, model=MODEL, model_type=FAMILY, blueprint=plain, card=card)
        return facts

    def load_export(self, directory: Path) -> PixelLLMModel:
        """Loads what `export` wrote, from that folder alone."""
        opened = open_export(directory, model=MODEL, model_type=FAMILY, files=FILES)
        try:
            model = PixelLLM(Blueprint.from_plain(opened.blueprint))
        except (KeyError, TypeError) as error:
            raise InputError(f"{directory / CONFIG}: its blueprint cannot be read ({error})") from None
        fill_from_export(model, opened)
        return self._ready(model, WordPieces.read(directory))

    def _ready(self, model: PixelLLM, pieces: WordPieces) -> PixelLLMModel:
        placed: nn.Module = model.to(device=self._device, dtype=self._dtype)
        assert isinstance(placed, PixelLLM)  # noqa: S101 - it is the same object
        return PixelLLMModel(placed, pieces)
