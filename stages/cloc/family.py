"""ClocFamily: brings up a CLOC from a checkpoint, from an export, or with fresh weights."""

from collections.abc import Mapping
from typing import Any

from transformers.initialization import no_init_weights

from stages.blueprints import BlueprintFamily
from stages.cloc.answer import ClocModel
from stages.cloc.config import FAMILY, Blueprint
from stages.cloc.initial import draw_weights
from stages.cloc.model import Cloc
from stages.exporting import padded_preprocessor
from stages.vision import CLIP_MEAN, CLIP_STD


class ClocFamily(BlueprintFamily[Blueprint, Cloc, ClocModel]):
    """What evaluation, export and prediction ask of CLOC."""

    name, family, blueprint = "Cloc", FAMILY, Blueprint

    def build(self, blueprint: Blueprint) -> Cloc:
        """Builds a model whose weights are about to be filled."""
        with no_init_weights():
            return Cloc(blueprint)

    def draw(self, network: Cloc, seed: int) -> None:
        """Fills a model with fresh weights."""
        draw_weights(network, seed)

    def answering(self, network: Cloc, pieces: Any) -> ClocModel:
        """Makes a model ready to answer."""
        return ClocModel(network, pieces)

    def preprocessor(self, blueprint: Blueprint) -> Mapping[str, Any]:
        """Says how pictures are prepared."""
        return padded_preprocessor(blueprint.image_size, CLIP_MEAN, CLIP_STD)

    def settings(self, blueprint: Blueprint) -> Mapping[str, Any]:
        """Describes both towers, whose weights have the names of a CLIP's: whoever reads CLIPs reads these as well."""
        clip = {"vision_config": blueprint.vision, "text_config": blueprint.text}
        return {**clip, "projection_dim": blueprint.embedding_size}
