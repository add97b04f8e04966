"""What evaluation, export and prediction may ask of any trained model."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.errors import InputError
from orchestrator.records import record
from stages import FAMILIES, FORMS
from stages.samples import Turn

MERGED, ADAPTER = FORMS  # adapters added to their weights, or alone


@record
class GroundedPhrase:
    """A phrase of a caption and the pixels it means."""

    phrase: str
    span: tuple[int, int]  # [start, end) code points of the caption
    mask_HW: NDArray[np.bool_]  # at the image's own size


@record
class Unpaired:
    """What was written and does not pair up: each phrase in tags, each mask pointed at, in their orders."""

    phrases: tuple[str, ...]
    masks_HW: tuple[NDArray[np.bool_], ...]  # at the image's own size


@record
class GroundedCaption:
    """A caption whose phrases carry masks."""

    caption: str
    phrases: tuple[GroundedPhrase, ...]
    unpaired: Unpaired | None = None  # None: every phrase had its mask, and every mask its phrase


@record
class Referred:
    """What was said about where something is, and the pixels of each time it was pointed at: none, one or more."""

    text: str
    masks_HW: tuple[NDArray[np.bool_], ...]  # at the image's own size


class Model(Protocol):
    """A trained model of any family, in one process, ready to answer."""

    def ground(self, images: Sequence[Image.Image], *, max_new_tokens: int) -> list[GroundedCaption]:
        """Writes a grounded caption for each image (GCG)."""

    def describe_regions(
        self, images: Sequence[Image.Image], boxes_xyxy_px: Sequence[Sequence[Sequence[float]]], *, max_new_tokens: int
    ) -> list[list[str]]:
        """Writes a caption for each box of each image."""

    def refer(self, image: Image.Image, expression: str, *, max_new_tokens: int) -> Referred:
        """Points at what an expression means ("the left cup")."""

    def refer_told(self, image: Image.Image, expressions: Sequence[str]) -> list[NDArray[np.bool_] | None]:
        """Points at what each expression means, all in one dialogue whose answers it is told (teacher-forced).

        Masks are at the image's own size; None where the dialogue was too long and was cut before its mask.
        """

    def answer(
        self, image: Image.Image, prompt: str, boxes_xyxy_px: Sequence[Sequence[float]], *, before: Sequence[Turn] = ()
    ) -> GroundedCaption:
        """Answers a free prompt about an image, after what was said before.

        Boxes are given in the order of `<bbox>` in the questions of `before` and then in the prompt.
        """


class ModelFamily(Protocol):
    """A kind of model: how to bring one up from a checkpoint or an export, and how to export it."""

    def load(self, checkpoint: Path) -> Model:
        """Loads a Checkpoint artifact."""

    def untrained(self, checkpoint: Path, *, seed: int) -> Model:
        """Builds the model of this checkpoint with fresh weights: the baseline."""

    def export(self, checkpoint: Path, directory: Path, *, card: str, form: str = MERGED) -> dict[str, Any]:
        """Writes safetensors, config.json, tokenizer and README.md (the model card) in one of FORMS; returns facts."""

    def load_export(self, directory: Path) -> Model:
        """Loads what `export` wrote, merged."""


def load_family(name: str) -> ModelFamily:
    """Returns the family of this name in stages.FAMILIES; imports its code, torch included."""
    if name not in FAMILIES:
        raise InputError(f"unknown model family {name!r}; known are {', '.join(sorted(FAMILIES))}")
    module, _, cls = FAMILIES[name].partition(":")
    family: ModelFamily = getattr(importlib.import_module(module), cls)()
    return family
