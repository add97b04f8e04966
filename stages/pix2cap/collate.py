"""Pictures and their segments to a Pix2CapBatch; the same code for training and for answering.

Legend: M segments of an image, S captions of all images, L tokens, H W pixels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.pix2cap.batches import Pix2CapBatch
from stages.pix2cap.config import AugmentConfig, Blueprint
from stages.samples import Sample
from stages.vision import IMAGENET_MEAN, IMAGENET_STD, decode_image, mask_from_rle, normalised
from stages.wordpieces import WordPieces

LEAST_CHARACTERS = 3  # of a description; the release leaves out images that have a shorter one, here it alone is


@record
class Segment:
    """A segment as it is learnt: its place among the categories, and what is said of it; empty: nothing."""

    category: int
    caption: str


@record
class Example:
    """One image with its segments: whose each pixel is."""

    image: Image.Image
    segments: tuple[Segment, ...]
    owner_HW: NDArray[np.int32]  # 0 = nobody's, n = segments[n - 1]


@record
class Placement:
    """How a picture lies in the square: scaled, maybe mirrored, cut where it is too large."""

    width_px: int  # of the scaled picture
    height_px: int
    left_px: int = 0  # what is cut off there
    top_px: int = 0
    flipped: bool = False


class Collator:
    """Builds batches for one model and one vocabulary."""

    def __init__(self, blueprint: Blueprint, words: WordPieces) -> None:
        """Reads sizes and categories."""
        self._side, self._words, self._max_tokens = blueprint.image_px, words, blueprint.max_tokens
        self._place: Mapping[str, int] = {one.name: place for place, one in enumerate(blueprint.categories)}

    def example(self, sample: Sample) -> Example:
        """Reads the segments of a sample, crowds left out; a category that the model lacks is refused."""
        found, owner_HW = [], np.zeros((sample.height_px, sample.width_px), dtype=np.int32)
        for region in sample.regions:
            if region.mask is None or region.crowd:
                continue
            if region.phrase not in self._place:
                raise InputError(f"sample {sample.key!r}: the model has no category {region.phrase!r}")
            found.append(Segment(category=self._place[region.phrase], caption=region.caption.strip()))
            owner_HW[mask_from_rle(region.mask)] = len(found)
        return Example(image=decode_image(sample.image), segments=tuple(found), owner_HW=owner_HW)

    def batch(self, examples: Sequence[Example], placements: Sequence[Placement]) -> Pix2CapBatch:
        """Lays the pictures into squares; segments of which nothing is left are left out."""
        pixels, masks, classes, said, image, mask = [], [], [], [], [], []
        for number, (example, placement) in enumerate(zip(examples, placements, strict=True)):
            pixels.append(self.pixels(example.image, placement))
            owner_HW = self._owners(example.owner_HW, placement)
            left = [place for place in range(len(example.segments)) if (owner_HW == place + 1).any()]
            masks.append(torch.stack([owner_HW == place + 1 for place in left]) if left else _none(owner_HW))
            classes.append(torch.tensor([example.segments[place].category for place in left], dtype=torch.long))
            for order, place in enumerate(left):
                if len(caption := example.segments[place].caption) >= LEAST_CHARACTERS:
                    said.append(self.ids(caption))
                    image.append(number)
                    mask.append(order)
        ids_SL, wanted_SL = self._padded(said)
        return Pix2CapBatch(
            pixels_BCHW=torch.stack(pixels),
            masks=masks,
            classes=classes,
            ids_SL=ids_SL,
            wanted_SL=wanted_SL,
            image_S=torch.tensor(image, dtype=torch.long),
            mask_S=torch.tensor(mask, dtype=torch.long),
        )

    def whole(self, image: Image.Image) -> Placement:
        """Places a picture whole: its longer side takes the square's."""
        return self._scaled(image.size, 1.0)

    def drawn(self, image: Image.Image, rules: AugmentConfig, seed: int) -> Placement:
        """Places a picture at random, as a function of a seed: large-scale jitter, a random cut, mirrored or not."""
        rng = np.random.default_rng(seed)
        placed = self._scaled(image.size, float(rng.uniform(*rules.scale)))
        left, top = (int(rng.integers(max(0, edge - self._side) + 1)) for edge in (placed.width_px, placed.height_px))
        flipped = bool(rng.random() < rules.flip)
        return Placement(
            width_px=placed.width_px, height_px=placed.height_px, left_px=left, top_px=top, flipped=flipped
        )

    def pixels(self, image: Image.Image, placement: Placement) -> Tensor:
        """Makes of a picture what the model reads; the mean colour fills the square."""
        pixels_CHW = torch.from_numpy(normalised(self._laid(image, placement), IMAGENET_MEAN, IMAGENET_STD))
        square = torch.zeros(3, self._side, self._side)
        square[:, : pixels_CHW.shape[1], : pixels_CHW.shape[2]] = pixels_CHW
        return square

    def ids(self, caption: str) -> list[int]:
        """Encodes a caption, with its beginning and end; what is too long loses its last words."""
        words = self._words
        return [words.start_id, *words.encode(caption)[: self._max_tokens - 2], words.end_id]

    def _scaled(self, size: tuple[int, int], scale: float) -> Placement:
        factor = scale * self._side / max(size)
        width_px, height_px = (max(1, round(edge * factor)) for edge in size)
        return Placement(width_px=width_px, height_px=height_px)

    def _laid(self, image: Image.Image, placement: Placement) -> Image.Image:
        nearest = image.mode == "I"  # numbers of owners have no value between them
        resampling = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
        laid = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if placement.flipped else image
        laid = laid.resize((placement.width_px, placement.height_px), resampling)
        right, bottom = (
            min(edge, start + self._side)
            for edge, start in ((laid.width, placement.left_px), (laid.height, placement.top_px))
        )
        return laid.crop((placement.left_px, placement.top_px, right, bottom))

    def _owners(self, owner_HW: NDArray[np.int32], placement: Placement) -> Tensor:
        laid = np.array(self._laid(Image.fromarray(owner_HW), placement))
        square = torch.zeros(self._side, self._side, dtype=torch.int32)
        square[: laid.shape[0], : laid.shape[1]] = torch.from_numpy(laid)
        return square

    def _padded(self, said: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        longest = max((len(ids) for ids in said), default=2)
        ids_SL = torch.full((len(said), longest), self._words.pad_id)
        wanted_SL = torch.zeros(len(said), longest, dtype=torch.bool)
        for row, ids in enumerate(said):
            ids_SL[row, : len(ids)] = torch.tensor(ids)
            wanted_SL[row, 1 : len(ids)] = True
        return ids_SL, wanted_SL


def _none(owner_HW: Tensor) -> Tensor:
    return torch.zeros(0, *owner_HW.shape, dtype=torch.bool)
