"""GlammFamily: brings up a GLaMM from a checkpoint, from an export, or with fresh weights."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.initialization import no_init_weights

from orchestrator.artifacts import Checkpoint
from orchestrator.errors import InputError
from orchestrator.training.foreign.source import few
from stages.adapters import LoraConfig
from stages.blueprints import TOKENIZER, BlueprintFamily
from stages.exporting import padded_preprocessor
from stages.family import ADAPTER, MERGED
from stages.glamm.adopted import read_adopted
from stages.glamm.answer import GlammModel
from stages.glamm.begin import read_blueprint
from stages.glamm.config import FAMILY, Blueprint
from stages.glamm.exported_adapter import write_adapter
from stages.glamm.initial import draw_weights
from stages.glamm.model import Glamm
from stages.glamm.pretrained import fill_from_published
from stages.glamm.tokenizer import Vocabulary
from stages.vision import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD


class GlammFamily(BlueprintFamily[Blueprint, Glamm, GlammModel]):
    """What evaluation, export and prediction ask of GLaMM."""

    name, family, blueprint = "Glamm", FAMILY, Blueprint

    def build(self, blueprint: Blueprint) -> Glamm:
        """Builds a model whose weights are about to be filled."""
        with no_init_weights():
            model = Glamm(blueprint)
        for part in (model.language_model, model.vision_tower, model.sam):
            part.tie_weights()  # which the above leaves out as well
        return model

    def draw(self, network: Glamm, seed: int) -> None:
        """Fills a model with fresh weights."""
        draw_weights(network, seed)

    def answering(self, network: Glamm, pieces: Any) -> GlammModel:
        """Makes a model ready to answer."""
        return GlammModel(network, pieces)

    def words(self, folder: Path) -> Vocabulary:
        """Reads the tokenizer, which has GLaMM's special tokens."""
        return Vocabulary.read(folder)

    def adapters(self, blueprint: Blueprint) -> LoraConfig | None:
        """Returns the adapters that an export merges."""
        return blueprint.lora

    def exported(self, blueprint: Blueprint) -> Blueprint:
        """Returns the blueprint without adapters: they are merged."""
        return replace(blueprint, lora=None)

    def preprocessor(self, blueprint: Blueprint) -> Mapping[str, Any]:
        """Says how pictures are prepared for either image encoder."""
        sam = padded_preprocessor(blueprint.canvas_px, IMAGENET_MEAN, IMAGENET_STD)
        reads = ("do_convert_rgb", "do_rescale", "rescale_factor", "do_normalize")
        return {
            **{name: sam.pop(name) for name in reads},
            "vision_tower": _vision(blueprint),
            "sam": sam,
            "num_image_tokens": blueprint.num_image_tokens,
        }

    def export(self, checkpoint: Path, directory: Path, *, card: str, form: str = MERGED) -> dict[str, Any]:
        """Writes safetensors with adapters merged, or the adapter alone, tokenizer and card; returns facts."""
        if form != ADAPTER:
            return super().export(checkpoint, directory, card=card, form=form)
        blueprint = read_blueprint(Checkpoint(checkpoint))
        return write_adapter(checkpoint, directory, blueprint, self.words(checkpoint / TOKENIZER), card=card)

    def adopt(self, folder: Path, vision: Path) -> GlammModel:
        """Loads a GLaMM as its authors publish it, with the CLIP of another folder, quirks included."""
        found = read_adopted(folder, vision)
        model = self.built(found.blueprint)
        filled = fill_from_published(model, found.config)
        if strange := [name for name in filled.fresh if name not in filled.report.missing]:
            raise InputError(f"{folder} is no whole GLaMM: nothing fills {few(strange)}")
        draw_weights(model, 0, keep=filled.report.loaded)  # biases that the published model lacks begin at zero
        return self.ready(model, found.vocabulary)


def _vision(blueprint: Blueprint) -> dict[str, Any]:
    side: int = blueprint.vision["image_size"]
    padded = padded_preprocessor(side, CLIP_MEAN, CLIP_STD)
    colours = {name: padded[name] for name in ("image_mean", "image_std")}
    if blueprint.padded:
        return {**{name: padded[name] for name in ("size", "pad_size", "resample")}, **colours}
    return {
        "size": {"shortest_edge": side} if blueprint.centre_crop else {"height": side, "width": side},
        "do_center_crop": blueprint.centre_crop,
        "crop_size": {"height": side, "width": side},
        "resample": 3,  # bicubic
        **colours,
    }
