"""Images and rows to a PixelBatch; the same code for training and for answering.

Legend as in `batches.py`.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.pixelllm.batches import IGNORED, PixelBatch
from stages.pixelllm.config import Blueprint
from stages.pixelllm.tasks import Row
from stages.samples import Rle
from stages.traces import aligned
from stages.vision import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Box,
    mask_from_rle,
    normalised,
    resize_mask,
)
from stages.wordpieces import WordPieces

_HALF_PX = 0.5  # SAM means the middles of pixels by its boxes' corners


@record
class Example:
    """One image and the rows about it."""

    image: Image.Image
    rows: tuple[Row, ...]
    boxes_xyxy_px: tuple[Box, ...] | None = None  # all that proposals should find; None: nothing is said of that
    share: float = 1.0  # of the canvas's side that the longer side of the image takes


@record
class Limits:
    """How much of a text is read; what is longer is cut."""

    text: int = 128  # tokens
    context: int = 32


class Collator:
    """Builds batches for one model and one tokenizer."""

    def __init__(
        self, blueprint: Blueprint, pieces: WordPieces, limits: Limits, *, idle: frozenset[str] = frozenset()
    ) -> None:
        """Checks that the model has a row for every token; `idle` parts of it will not be run."""
        if pieces.size > blueprint.vocabulary_size:
            raise InputError(f"the tokenizer has {pieces.size} tokens, the model {blueprint.vocabulary_size}")
        self.canvas, self.pieces, self._limits, self._idle = blueprint.canvas_px, pieces, limits, idle

    def batch(self, examples: Sequence[Example]) -> PixelBatch:
        """Pads contexts and texts to the longest of their kind."""
        scaled = [self.pixels(example.image, share=example.share) for example in examples]
        rows = [(number, row) for number, example in enumerate(examples) for row in example.rows]
        texts = [self.pieces.encode(row.text)[: self._limits.text] for _, row in rows]
        contexts = [self.context(row) for _, row in rows]
        insides = [inside for *_, inside in scaled]
        sizes = [example.image.size for example in examples]
        found = [(number, box) for number, example in enumerate(examples) for box in example.boxes_xyxy_px or ()]
        places = [
            self._places(row, len(text), insides[at], sizes[at]) for (at, row), text in zip(rows, texts, strict=True)
        ]
        targets = [
            [*text, self.pieces.end_id] if row.speaks and text else [IGNORED] * (len(text) + 1)
            for (_, row), text in zip(rows, texts, strict=True)
        ]
        drawn = [(number, row.target_mask) for number, (_, row) in enumerate(rows) if row.target_mask is not None]
        masks = [self._mask(mask, insides[rows[number][0]]) for number, mask in drawn]
        return PixelBatch(
            semantic_pixels_BCHW=torch.stack([pixels for pixels, *_ in scaled]),
            localization_pixels_BCHW=torch.stack([pixels for _, pixels, _ in scaled]),
            inside_B2=torch.tensor(insides, dtype=torch.float32),
            image_N=torch.tensor([number for number, _ in rows]),
            prompts_N4=torch.tensor([self._prompt(row.box_xyxy_px, insides[at], sizes[at]) for at, row in rows]),
            context_NM=_padded(contexts, self.pieces.pad_id),
            is_context_NM=_padded([[1] * len(ids) for ids in contexts], 0).bool(),
            ids_NL=_padded([[self.pieces.start_id, *text] for text in texts], self.pieces.pad_id),
            targets_NL=_padded(targets, IGNORED),
            corners_NL22=_stacked([corners for corners, _ in places]),
            is_located_NL=_padded([known for _, known in places], 0).bool(),
            last_N=torch.tensor([len(text) for text in texts]),
            drawn_S=torch.tensor([number for number, _ in drawn], dtype=torch.long),
            masks_SHW=torch.stack(masks) if masks else torch.zeros(0, self.canvas, self.canvas, dtype=torch.bool),
            boxes_G4=torch.tensor([_moved(box, insides[at], sizes[at]) for at, box in found]).reshape(-1, 4),
            box_image_G=torch.tensor([number for number, _ in found], dtype=torch.long),
            proposes=any(example.boxes_xyxy_px is not None for example in examples),
            idle=self._idle,
        )

    def pixels(self, image: Image.Image, *, share: float = 1.0) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Scales the longer side to the canvas and pads right and below: for CLIP, for SAM, and width and height."""
        scale = share * self.canvas / max(image.size)
        width, height = (max(1, round(edge * scale)) for edge in image.size)
        scaled = image.resize((width, height), Image.Resampling.BICUBIC)
        semantic, localization = torch.zeros(2, 3, self.canvas, self.canvas)
        semantic[:, :height, :width] = torch.from_numpy(normalised(scaled, CLIP_MEAN, CLIP_STD))
        localization[:, :height, :width] = torch.from_numpy(normalised(scaled, IMAGENET_MEAN, IMAGENET_STD))
        return semantic, localization, (width, height)

    def context(self, row: Row) -> list[int]:
        """Encodes what is asked; the end token follows it."""
        return [*self.pieces.encode(row.context)[: self._limits.context - 1], self.pieces.end_id]

    def _prompt(self, box_xyxy_px: Box | None, inside: tuple[int, int], size: tuple[int, int]) -> list[float]:
        whole = (0.0, 0.0, float(size[0]), float(size[1]))
        return [(edge + _HALF_PX) / self.canvas for edge in _moved(box_xyxy_px or whole, inside, size)]

    def _mask(self, mask: Rle, inside: tuple[int, int]) -> Tensor:
        width, height = inside
        canvas_HW = torch.zeros(self.canvas, self.canvas, dtype=torch.bool)
        scaled_HW = resize_mask(mask_from_rle(mask), width_px=width, height_px=height)
        canvas_HW[:height, :width] = torch.from_numpy(scaled_HW)
        return canvas_HW

    def _places(
        self, row: Row, count: int, inside: tuple[int, int], size: tuple[int, int]
    ) -> tuple[list[list[float]], list[int]]:
        """Says for the start token and each of the text where it is, px of the canvas, and whether that is known."""
        width, height = inside
        if row.target_xyxy_px is not None and count:
            # the box is read off the last token before the end: only there the whole expression has been read
            return [[0.0] * 4] * count + [_moved(row.target_xyxy_px, inside, size)], [0] * count + [1]
        found = aligned(count, row.trace)
        corners = [[x0 * width, y0 * height, x1 * width, y1 * height] for x0, y0, x1, y1 in found]
        known = [int(any(corner)) for corner in corners]  # as published: all zeros stand for no place
        missing = count - len(found)
        return [[0.0] * 4, *corners, *([[0.0] * 4] * missing)], [0, *known, *([0] * missing)]


def _moved(box_xyxy_px: Box, inside: tuple[int, int], size: tuple[int, int]) -> list[float]:
    """Turns pixels of an image into pixels of the canvas."""
    across, down = inside[0] / size[0], inside[1] / size[1]
    x0, y0, x1, y1 = box_xyxy_px
    return [x0 * across, y0 * down, x1 * across, y1 * down]


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def _stacked(rows: Sequence[Sequence[Sequence[float]]]) -> Tensor:
    longest = max(len(row) for row in rows)
    padded = [[*row, *[[0.0] * 4] * (longest - len(row))] for row in rows]
    return torch.tensor(padded).view(len(rows), longest, 2, 2)
