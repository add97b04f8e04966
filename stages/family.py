"""What evaluation, export and prediction may ask of any trained model."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.errors import InputError
from orchestrator.records import record
from stages import FAMILIES, FORMS
from stages.samples import Turn
from stages.vision import Box

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


@record
class LocatedWord:
    """A word of a caption and where it is."""

    span: tuple[int, int]  # [start, end) code points of the caption
    points_xy_px: tuple[tuple[float, float], ...]  # two are the corners, top left and bottom right, of a box


@record
class LocatedCaption:
    """A caption whose words have places."""

    caption: str
    words: tuple[LocatedWord, ...]


@record
class DescribedBox:
    """A box that was found, and what it holds."""

    box_xyxy_px: Box
    score: float  # 0..1
    caption: str


@record
class DescribedSegment:
    """A segment of a panoptic segmentation, and what it holds."""

    mask_HW: NDArray[np.bool_]  # at the image's own size; segments of an image do not overlap
    category: str
    category_id: int  # as in the data it was trained with
    is_thing: bool
    score: float  # 0..1
    caption: str


class Model(Protocol):
    """A trained model of any family, in one process, ready to answer; which abilities it has is its family's affair."""


@runtime_checkable
class Grounds(Model, Protocol):
    """Writes captions whose phrases carry masks."""

    def ground(self, images: Sequence[Image.Image], *, max_new_tokens: int) -> list[GroundedCaption]:
        """Writes a grounded caption for each image (GCG)."""


@runtime_checkable
class DescribesRegions(Model, Protocol):
    """Describes given boxes."""

    def describe_regions(
        self, images: Sequence[Image.Image], boxes_xyxy_px: Sequence[Sequence[Sequence[float]]], *, max_new_tokens: int
    ) -> list[list[str]]:
        """Writes a caption for each box of each image."""


@runtime_checkable
class Refers(Model, Protocol):
    """Points with masks at what expressions mean."""

    def refer(self, image: Image.Image, expression: str, *, max_new_tokens: int) -> Referred:
        """Points at what an expression means ("the left cup")."""

    def refer_told(self, image: Image.Image, expressions: Sequence[str]) -> list[NDArray[np.bool_] | None]:
        """Points at what each expression means, all in one dialogue whose answers it is told (teacher-forced).

        Masks are at the image's own size; None where the dialogue was too long and was cut before its mask.
        """


@runtime_checkable
class Answers(Model, Protocol):
    """Holds a conversation about an image."""

    def answer(
        self, image: Image.Image, prompt: str, boxes_xyxy_px: Sequence[Sequence[float]], *, before: Sequence[Turn] = ()
    ) -> GroundedCaption:
        """Answers a free prompt about an image, after what was said before.

        Boxes are given in the order of `<bbox>` in the questions of `before` and then in the prompt.
        """


@runtime_checkable
class RefersByBox(Model, Protocol):
    """Points with boxes at what expressions mean."""

    def refer_boxes(self, images: Sequence[Image.Image], expressions: Sequence[Sequence[str]]) -> list[list[Box]]:
        """Finds one box for each expression of each image, in pixels of the image."""


@runtime_checkable
class LocatesWords(Model, Protocol):
    """Writes captions whose words have places."""

    def locate_words(self, images: Sequence[Image.Image], *, max_new_tokens: int) -> list[LocatedCaption]:
        """Writes a caption for each image, and where each word of it is."""

    def locate_told(self, images: Sequence[Image.Image], captions: Sequence[str]) -> list[LocatedCaption]:
        """Says where each word of a caption is that it is told (teacher-forced)."""


@runtime_checkable
class DescribesDensely(Model, Protocol):
    """Finds and describes everything."""

    def describe_densely(self, images: Sequence[Image.Image], *, max_new_tokens: int) -> list[list[DescribedBox]]:
        """Finds boxes in each image, the surest first, and describes each."""


@runtime_checkable
class Embeds(Model, Protocol):
    """Puts images, regions and texts into one space, in which what belongs together is close."""

    def embed_images(
        self, images: Sequence[Image.Image], masks_HW: Sequence[NDArray[np.bool_] | None]
    ) -> NDArray[np.float32]:
        """Embeds each image, or the part of it that a mask shows: N x D, of unit length."""

    def embed_regions(
        self,
        images: Sequence[Image.Image],
        boxes_xyxy_px: Sequence[Sequence[Sequence[float]]],
        masks_HW: Sequence[Sequence[NDArray[np.bool_] | None]],
    ) -> list[NDArray[np.float32]]:
        """Embeds each region of each image, by its mask where there is one and the family uses it: R x D each."""

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeds each text: N x D, of unit length."""


@runtime_checkable
class EmbedsWhole(Embeds, Protocol):
    """Embeds whole images also in the way of its release's scripts for long texts, where that is another one."""

    def embed_whole_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Embeds each image: N x D, of unit length."""


@runtime_checkable
class EmbedsMasked(Embeds, Protocol):
    """Embeds what masks show, pixel by pixel, and not only the boxes around them."""

    def embed_masked(self, image: Image.Image, masks_HW: Sequence[NDArray[np.bool_]]) -> NDArray[np.float32]:
        """Embeds what each mask shows of an image: R x D, of unit length."""


@runtime_checkable
class SegmentsPanoptic(Model, Protocol):
    """Cuts images into described segments."""

    def segment(self, images: Sequence[Image.Image], *, max_new_tokens: int) -> list[tuple[DescribedSegment, ...]]:
        """Cuts each image into segments that do not overlap, each with a category and a caption."""


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


# what each ability gives, in the words of a message
IN_WORDS: Mapping[type[Any], str] = {
    Grounds: "captions whose phrases carry masks",
    DescribesRegions: "a caption for a box",
    Refers: "masks for an expression",
    Answers: "answers to a prompt",
    RefersByBox: "a box for an expression",
    LocatesWords: "captions whose words have places",
    DescribesDensely: "boxes of everything, described",
    Embeds: "how well texts fit a region",
    EmbedsWhole: "how well texts fit an image, as released",
    EmbedsMasked: "how well texts fit what a mask shows",
    SegmentsPanoptic: "panoptic segments, described",
}


def unable(model: Model, wanted: type[Any]) -> InputError:
    """Returns the error that says what was asked of a model, and what it can do instead."""
    found = [words for ability, words in IN_WORDS.items() if isinstance(model, ability)]
    return InputError(f"this model cannot give {IN_WORDS[wanted]}; it can give {', or '.join(found) or 'nothing'}")
