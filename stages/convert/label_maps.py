"""Semantic segmentation: pictures of class numbers become one region a class. One reader, a layout a data set."""

import io
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.errors import InputError
from stages.convert.raw import Attempt, BrokenRecord, Found, Notes, RawPart
from stages.samples import Region
from stages.vision import MAX_PIXELS, Mask, box_of_mask, rle_from_mask

_UNLABELLED = (0, 255)  # where they are not the number of a class

Classes = Mapping[int, str]  # number in the picture -> name


def read_ade20k(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Reads ADE20K: a JSON list of names; number n is the n-th of them, 0 is unlabelled."""
    names = json.loads(_text(raw))
    yield from _read(raw, notes, {number: str(name) for number, name in enumerate(names, start=1)})


def read_coco_stuff(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Reads COCO-Stuff: lines `number: name`; the pictures count one less than the lines, 255 is unlabelled."""
    lines = [line.partition(":") for line in _text(raw).splitlines() if line.strip()]
    classes = {int(number) - 1: name.strip() for number, _, name in lines}
    yield from _read(raw, notes, {number: name for number, name in classes.items() if number >= 0})


def read_mapillary(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Reads Mapillary Vistas: its own config lists the classes in the order of their numbers."""
    labels = json.loads(_text(raw))["labels"]
    names = {number: str(label["readable"]).lower() for number, label in enumerate(labels)}
    yield from _read(raw, notes, {number: name for number, name in names.items() if name != "unlabeled"})


def _read(raw: RawPart, notes: Notes, classes: Classes) -> Iterator[Attempt]:
    for number, path in enumerate(raw.files(0, ".png")):
        name = f"{raw.record(number, None)} {path.name}"
        yield from notes.attempt(name, partial(_found, raw, notes, number, path, classes))


def _found(raw: RawPart, notes: Notes, number: int, path: Path, classes: Classes) -> Found:
    picture = raw.picture(f"{path.stem}.jpg")
    numbers_HW = _numbers(path)
    if numbers_HW.shape != (picture.height_px, picture.width_px):
        shape = f"{numbers_HW.shape[1]} x {numbers_HW.shape[0]}"
        detail = f"{path.name}: {shape}, not {picture.width_px} x {picture.height_px}"
        raise BrokenRecord("mask has another size than its image", detail)
    there = []
    for value in np.unique(numbers_HW).tolist():
        if value in classes:
            there.append(value)
        elif value not in _UNLABELLED:
            notes.repair("number without a class: left unlabelled")
    if not there:
        raise BrokenRecord("no region is left", path.name)
    return picture.found(
        raw.key(number, path.name),
        regions=tuple(_region(numbers_HW == value, classes[value], raw) for value in there),
    )


def _region(mask_HW: Mask, name: str, raw: RawPart) -> Region:
    box = box_of_mask(mask_HW)
    if box is None:
        raise BrokenRecord("mask is empty", name)
    return Region(box_xyxy_px=box, mask=rle_from_mask(mask_HW), phrase=name, source=raw.part.subset)


def _numbers(path: Path) -> NDArray[Any]:
    """Reads a picture of numbers: grey, or of palette entries, as they are stored."""
    try:
        image = Image.open(io.BytesIO(path.read_bytes()), formats=("PNG",))
        if image.width * image.height > MAX_PIXELS or image.mode not in ("L", "P", "I;16", "I"):
            raise BrokenRecord("mask is no picture of numbers", f"{path}: {image.size}, mode {image.mode}")
        return np.asarray(image)
    except (SyntaxError, ValueError, OSError, Image.DecompressionBombError) as error:
        raise BrokenRecord("mask is damaged", f"{path}: {error}") from None


def _text(raw: RawPart) -> str:
    path = raw.root / raw.part.annotations[0]
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}") from None
