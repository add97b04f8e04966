"""Pix2CapFamily: brings up a Pix2Cap from a checkpoint, from an export, or with fresh weights."""

from collections.abc import Mapping
from typing import Any

from transformers.initialization import no_init_weights

from stages.blueprints import BlueprintFamily
from stages.exporting import padded_preprocessor
from stages.pix2cap.answer import Pix2CapModel
from stages.pix2cap.config import FAMILY, Blueprint
from stages.pix2cap.initial import draw_weights
from stages.pix2cap.model import Pix2Cap
from stages.vision import IMAGENET_MEAN, IMAGENET_STD


class Pix2CapFamily(BlueprintFamily[Blueprint, Pix2Cap, Pix2CapModel]):
    """What evaluation, export and prediction ask of Pix2Cap."""

    name, family, blueprint = "Pix2Cap", FAMILY, Blueprint

    def build(self, blueprint: Blueprint) -> Pix2Cap:
        """Builds a model whose weights are about to be filled."""
        with no_init_weights():
            return Pix2Cap(blueprint)

    def draw(self, network: Pix2Cap, seed: int) -> None:
        """Fills a model with fresh weights."""
        draw_weights(network, seed)

    def answering(self, network: Pix2Cap, pieces: Any) -> Pix2CapModel:
        """Makes a model ready to answer."""
        return Pix2CapModel(network, pieces)

    def preprocessor(self, blueprint: Blueprint) -> Mapping[str, Any]:
        """Says how pictures are prepared."""
        return padded_preprocessor(blueprint.image_px, IMAGENET_MEAN, IMAGENET_STD)
