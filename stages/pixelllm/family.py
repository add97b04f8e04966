"""PixelLLMFamily: brings up a PixelLLM from a checkpoint, from an export, or with fresh weights."""

from dataclasses import replace
from typing import Any

from stages.adapters import LoraConfig
from stages.blueprints import BlueprintFamily
from stages.pixelllm.answer import DrawingPixelLLM, PixelLLMModel
from stages.pixelllm.config import FAMILY, Blueprint
from stages.pixelllm.initial import draw_weights
from stages.pixelllm.model import PixelLLM


class PixelLLMFamily(BlueprintFamily[Blueprint, PixelLLM, PixelLLMModel]):
    """What evaluation, export and prediction ask of PixelLLM."""

    name, family, blueprint = "PixelLLM", FAMILY, Blueprint

    def build(self, blueprint: Blueprint) -> PixelLLM:
        """Builds a model whose weights are about to be filled; transformers ties T5's embeddings on the way."""
        return PixelLLM(blueprint)

    def draw(self, network: PixelLLM, seed: int) -> None:
        """Fills a model with fresh weights."""
        draw_weights(network, seed)

    def answering(self, network: PixelLLM, pieces: Any) -> PixelLLMModel:
        """Makes a model ready to answer."""
        return PixelLLMModel(network, pieces) if network.masks is None else DrawingPixelLLM(network, pieces)

    def adapters(self, blueprint: Blueprint) -> LoraConfig | None:
        """Returns the adapters of the language model."""
        return blueprint.lora

    def exported(self, blueprint: Blueprint) -> Blueprint:
        """Leaves out the adapters, which are merged."""
        return replace(blueprint, lora=None)
