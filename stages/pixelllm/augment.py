"""Images at other sizes, cut at other places, mirrored: a sample is not the same each time that it is drawn."""

import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from PIL import Image

from orchestrator.records import record
from stages.pixelllm.collate import Example
from stages.pixelllm.kinds import CAPTION, DENSE, REFER, REGION, SEGMENT
from stages.pixelllm.tasks import Row
from stages.samples import Rle
from stages.vision import Box, clip_box, mask_from_rle, rle_from_mask


@record
class Augmentation:
    """How much an image may change."""

    smallest: float  # of its longer side, in sides of the canvas; the rest is padding
    largest: float  # above 1: a part is cut out, anywhere, and fills the canvas
    mirrored: bool = False  # half of the time


# as published for each kind of data; narratives stay whole, so that every word's place is in the picture
PUBLISHED: Mapping[str, Augmentation] = {
    CAPTION: Augmentation(smallest=0.75, largest=1.25),
    REFER: Augmentation(smallest=0.75, largest=1.25),
    SEGMENT: Augmentation(smallest=0.75, largest=1.25),
    REGION: Augmentation(smallest=0.1, largest=2.0, mirrored=True),
    DENSE: Augmentation(smallest=0.1, largest=2.0, mirrored=True),
}


@record
class View:
    """The part of an image that is shown, px of the image, and whether mirrored."""

    window: Box
    mirrored: bool

    def image(self, whole: Image.Image) -> Image.Image:
        """Cuts it out."""
        x0, y0, x1, y1 = (int(edge) for edge in self.window)
        part = whole.crop((x0, y0, x1, y1))
        return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else part

    def box(self, box_xyxy_px: Box) -> Box | None:
        """Says where a box of the whole image lies in it; None where it lies outside."""
        left, top, right, bottom = self.window
        x0, y0, x1, y1 = box_xyxy_px
        moved = (x0 - left, y0 - top, x1 - left, y1 - top)
        if self.mirrored:
            moved = (right - x1, moved[1], right - x0, moved[3])
        return clip_box(moved, width_px=int(right - left), height_px=int(bottom - top))

    def mask(self, mask: Rle) -> Rle:
        """Cuts a mask as it cuts the image."""
        x0, y0, x1, y1 = (int(edge) for edge in self.window)
        part_HW = mask_from_rle(mask)[y0:y1, x0:x1]
        return rle_from_mask(np.ascontiguousarray(part_HW[:, ::-1] if self.mirrored else part_HW))


def augmented(example: Example, rule: Augmentation, *, seed: int) -> Example:
    """Changes an image and what is said of it; a view in which nothing is left to be said is not taken.

    A function of the seed. Boxes are cut to the view; rows whose box lies outside of it are left out.
    """
    chance = random.Random(f"view {seed}")  # noqa: S311 - no secret
    ratio = chance.uniform(rule.smallest, rule.largest)
    width, height = example.image.size
    side = max(1, round(max(width, height) / max(1.0, ratio)))
    across, down = min(width, side), min(height, side)
    left, top = chance.randint(0, width - across), chance.randint(0, height - down)
    window = (float(left), float(top), float(left + across), float(top + down))
    view = View(window=window, mirrored=rule.mirrored and chance.random() < 0.5)
    rows = [moved for row in example.rows if (moved := _moved(row, view)) is not None]
    if not rows:
        return example
    boxes = None if example.boxes_xyxy_px is None else [view.box(box) for box in example.boxes_xyxy_px]
    return Example(
        image=view.image(example.image),
        rows=tuple(rows),
        boxes_xyxy_px=None if boxes is None else tuple(box for box in boxes if box is not None),
        share=min(1.0, ratio),
    )


def _moved(row: Row, view: View) -> Row | None:
    asked, target = row.box_xyxy_px and view.box(row.box_xyxy_px), row.target_xyxy_px and view.box(row.target_xyxy_px)
    if (row.box_xyxy_px and asked is None) or (row.target_xyxy_px and target is None):
        return None
    mask = row.target_mask and view.mask(row.target_mask)
    return replace(row, box_xyxy_px=asked, target_xyxy_px=target, target_mask=mask)
