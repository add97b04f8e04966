"""LongGRIT-like descriptions: one masked region a line, described at length."""

import json
from collections.abc import Iterator
from functools import partial

from stages.convert.coco import mask_of
from stages.convert.raw import Attempt, BrokenRecord, Found, Notes, RawPart, boxed
from stages.plain import numbers
from stages.samples import Region
from stages.vision import rle_from_mask


def read(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample a line."""
    for number, line in enumerate(raw.lines(0)):
        yield from notes.attempt(raw.record(number, None), partial(_found, raw, notes, number, line))


def _found(raw: RawPart, notes: Notes, number: int, line: bytes) -> Found:
    plain = json.loads(line)
    picture = raw.picture(plain["image"], (plain["width"], plain["height"]))
    caption = plain["caption"].strip()
    if not caption:
        raise BrokenRecord("caption is empty", picture.name)
    x0, y0, x1, y1 = numbers(plain["bbox"], 4, "bbox")
    region = Region(
        box_xyxy_px=boxed((x0, y0, x1, y1), picture, notes),
        mask=rle_from_mask(mask_of(plain["mask"], picture)),
        phrase="",
        caption=caption,
        source="longgrit",
    )
    return picture.found(raw.key(number, str(plain["id"])), regions=(region,))
