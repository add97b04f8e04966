"""Densely Captioned Images: photographs of SA-1B with a long text each, and masks with texts of their own."""

import base64
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.convert.long_texts import ALL, spoken
from stages.convert.raw import Attempt, BrokenRecord, Found, Notes, Picture, RawPart
from stages.samples import Region
from stages.vision import box_of_mask, decode_image, rle_from_mask

_SPLITS = {"train": "train", "val": "valid", "test": "test"}  # their names in splits.json
_FINE, _UNUSABLE = 0, 2  # mask_quality; 1 = good for its label only


def read_extended(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample a file; the text is the short caption and the extra one, as in LoTLIP's evaluation."""
    yield from _read(raw, notes, ("short_caption", "extra_caption"))


def read_extra(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample a file; the text is the extra caption alone, as in FG-CLIP 2's evaluation."""
    yield from _read(raw, notes, ("extra_caption",))


def _read(raw: RawPart, notes: Notes, texts: tuple[str, ...]) -> Iterator[Attempt]:
    files = {path.name: path for path in raw.files(0, ".json")}
    split = raw.part.split
    names = list(files) if split == ALL else [str(name) for name in raw.object(0, _SPLITS[split])[_SPLITS[split]]]
    raw.about = len(names)
    for number, file in enumerate(names):
        name = f"{raw.record(number, None)} {file}"
        yield from notes.attempt(name, partial(_found, raw, notes, number, name, files.get(file), texts))


def _found(raw: RawPart, notes: Notes, number: int, name: str, path: Path | None, texts: tuple[str, ...]) -> Found:
    if path is None:
        raise BrokenRecord("annotation file is missing", name)
    plain = json.loads(path.read_bytes())
    picture = raw.picture(plain["image"])
    caption = spoken("\n".join(text for key in texts if (text := plain[key].strip())), picture.name)
    regions = []
    for key, mask in plain.get("mask_data", {}).items():
        if isinstance(mask, dict) and mask.get("mask_quality") == _UNUSABLE:
            notes.repair("mask marked unusable by its authors: left out")
            continue
        build = partial(_region, raw, picture, mask)
        if (region := notes.judged(f"{name} mask {key}", build, piece="region")) is not None:
            regions.append(region)
    return picture.found(raw.key(number, picture.name), caption=caption, regions=tuple(regions))


def _region(raw: RawPart, picture: Picture, plain: Any) -> Region:
    """Reads a mask: a PNG as text, everything that is not black. Its `bounds` are not needed."""
    mask_HW = np.asarray(decode_image(base64.b64decode(plain["outer_mask"], validate=True))).max(axis=-1) > 0
    if mask_HW.shape != (picture.height_px, picture.width_px):
        shape = f"{mask_HW.shape[1]} x {mask_HW.shape[0]}"
        detail = f"{shape}, not {picture.width_px} x {picture.height_px}"
        raise BrokenRecord("mask has another size than its image", detail)
    box = box_of_mask(mask_HW)
    if box is None:
        raise BrokenRecord("mask is empty", picture.name)
    return Region(
        box_xyxy_px=box,
        mask=rle_from_mask(mask_HW),
        phrase=plain["label"].strip(),
        caption=plain["caption"].strip() if plain["mask_quality"] == _FINE else "",
        source=raw.part.subset,
    )
