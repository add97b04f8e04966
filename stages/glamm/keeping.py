"""Keeps what the image encoders make of a set of shards, beside each sample."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from PIL import Image

from orchestrator.artifacts import Checkpoint, Shards
from orchestrator.stage import StageContext
from stages.glamm.encoders import Encoders
from stages.glamm.features import FACT, MEMBER
from stages.keeping import keep_beside
from stages.samples import Sample
from stages.vision import decode_image

_PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


class _Config(Protocol):
    @property
    def precision(self) -> str: ...
    @property
    def images_at_once(self) -> int: ...


def keep_features(
    config: _Config, model: Checkpoint, source: Shards, target: Shards, context: StageContext
) -> dict[str, Any]:
    """Writes the tars of `source` again, with features. Returns facts on the first rank.

    Collective: every rank must call.
    """
    encoders = Encoders(model, precision=_PRECISIONS[config.precision], device=context.world.device)
    maker = _Features(encoders, config.images_at_once)
    kept = keep_beside(maker, source, target, context, made_of=[model.digest()])
    if kept is None:
        return {}
    about = {"encoders": encoders.digest, "precision": config.precision, "left_out": kept.left_out}
    return {**kept.facts, FACT: about}


class _Features:
    """Makes the features of images."""

    member = MEMBER

    def __init__(self, encoders: Encoders, at_once: int) -> None:
        self._encoders, self.at_once = encoders, at_once

    def take(self, key: str, members: Mapping[str, bytes]) -> Image.Image:
        """Decodes the image."""
        return decode_image(Sample.from_members(key, members).image)

    def make(self, taken: Sequence[Image.Image]) -> Sequence[bytes]:
        """Encodes the images."""
        return self._encoders.encode(taken)
