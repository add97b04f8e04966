"""PixClipFamily: brings up a PixCLIP from a checkpoint, from an export, or with fresh weights."""

from collections.abc import Mapping
from typing import Any

from transformers.initialization import no_init_weights

from stages.blueprints import BlueprintFamily
from stages.pixclip.answer import PixClipModel
from stages.pixclip.config import FAMILY, Blueprint
from stages.pixclip.initial import draw_weights
from stages.pixclip.model import PixClip
from stages.pixclip.squares import MASK_MEAN, MASK_STD
from stages.vision import CLIP_MEAN, CLIP_STD


class PixClipFamily(BlueprintFamily[Blueprint, PixClip, PixClipModel]):
    """What evaluation, export and prediction ask of PixCLIP; a language model outside is opened when texts come."""

    name, family, blueprint = "PixClip", FAMILY, Blueprint

    def build(self, blueprint: Blueprint) -> PixClip:
        """Builds a model whose weights are about to be filled."""
        with no_init_weights():
            return PixClip(blueprint)

    def draw(self, network: PixClip, seed: int) -> None:
        """Fills a model with fresh weights."""
        draw_weights(network, seed)

    def answering(self, network: PixClip, pieces: Any) -> PixClipModel:
        """Makes a model ready to answer."""
        return PixClipModel(network, pieces)

    def reads(self, blueprint: Blueprint) -> bool:
        """Tells whether a model has a text model of its own."""
        return blueprint.text is not None

    def preprocessor(self, blueprint: Blueprint) -> Mapping[str, Any]:
        """Says how pictures and masks are prepared."""
        side = blueprint.side_px
        return {
            "do_convert_rgb": True,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "do_pad": True,  # to a square, black, the image in the middle; before it is resized
            "size": {"height": side, "width": side},
            "resample": 3,  # bicubic
            "image_mean": list(CLIP_MEAN),
            "image_std": list(CLIP_STD),
            "mask": {"mean": MASK_MEAN, "std": MASK_STD, "resample": 2},  # 1 = the region, 0 = the rest and the padding
        }
