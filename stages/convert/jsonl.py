"""One's own data: a file with one JSON object a line, in the schema of OWN_DATA.md."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from orchestrator.errors import InputError
from stages.convert.grand_f import spans_of
from stages.convert.raw import Attempt, BrokenRecord, Found, Notes, Picture, RawPart, boxed
from stages.plain import NUMBER, checked, numbers
from stages.samples import Caption, Region, TimedPoint, Turn
from stages.vision import (
    Box,
    Mask,
    box_of_mask,
    decode_image,
    mask_from_coco,
    mask_from_polygons,
    rle_from_mask,
    xyxy_from_xywh,
)

_LINE = {"image": str}
_OF_LINE = {"caption": str, "captions": list, "regions": list, "points": list, "turns": list}
_BOXES = ("box_xyxy_px", "box_xywh_px", "box_xyxy_unit")
_OF_REGION = {
    **dict.fromkeys(_BOXES, list), "mask": (dict, list, str), "phrase": str, "more_phrases": list, "caption": str,
    "spans": list, "find": str, "score": NUMBER, "source": str, "crowd": bool,
}  # fmt: skip
_POINT = {"word": str, "x_unit": NUMBER, "y_unit": NUMBER, "time_s": NUMBER}
_TURN = {"question": str, "answer": str}


def read(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample a line; lines are numbered as editors do."""
    for line, content in raw.numbered_lines(0):
        yield from notes.attempt(f"{raw.part.annotations[0]}:{line}", partial(_found, raw, line, content, notes))


def _found(raw: RawPart, line: int, content: bytes, notes: Notes) -> Found:
    plain = _parsed(content)
    try:
        checked(plain, _LINE, "the line", _OF_LINE)
        captions = [text for text in (plain.get("caption", ""), *_texts(plain, "captions", "the line")) if text]
        caption = captions[0] if captions else ""
        picture = raw.picture(plain["image"])
        return picture.found(
            raw.key(line, plain["image"]),
            caption=caption,
            regions=_regions(raw, plain.get("regions", []), picture, caption, notes),
            points=tuple(TimedPoint(**checked(one, _POINT, where)) for one, where in _each(plain, "points")),
            turns=tuple(Turn(**checked(one, _TURN, where)) for one, where in _each(plain, "turns")),
            more_captions=tuple(Caption(text=text) for text in captions[1:]),
        )
    except InputError as error:
        raise BrokenRecord("line does not follow the schema", str(error)) from None


def _parsed(content: bytes) -> Any:
    """Reads a line, more strictly than Python does: no NaN, and no key twice."""
    try:
        return json.loads(content.decode("utf-8-sig"), parse_constant=_no_number, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        raise BrokenRecord("line is not JSON", str(error)) from None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _no_key_twice(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return plain


def _each(plain: Mapping[str, Any], key: str) -> Iterator[tuple[Any, str]]:
    for number, one in enumerate(plain.get(key, [])):
        yield one, f"{key}[{number}]"


def _texts(plain: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    for number, text in enumerate(plain.get(key, [])):
        if not isinstance(text, str):
            raise InputError(f"{where}: {key}[{number}]: {text!r:.60} is not a text")
    return tuple(plain.get(key, []))


def _regions(raw: RawPart, plain: Sequence[Any], picture: Picture, caption: str, notes: Notes) -> tuple[Region, ...]:
    """Builds the regions; one that is wrong breaks the line, for the others may not mean the same without it."""
    regions = [checked(one, {}, f"regions[{number}]", _OF_REGION) for number, one in enumerate(plain)]
    places = iter(spans_of(caption, [region["find"] for region in regions if "find" in region]))
    built = []
    for number, region in enumerate(regions):
        where = f"regions[{number}]"
        spans = next(places) if "find" in region else _spans(region, where)
        if "find" in region and not spans:
            notes.repair("text to find is not in the caption, or taken: region kept without its place")
        mask_HW = _mask(raw, region["mask"], picture, where) if "mask" in region else None
        built.append(
            Region(
                box_xyxy_px=_box(region, mask_HW, picture, notes, where),
                mask=None if mask_HW is None else rle_from_mask(mask_HW),
                phrase=region.get("phrase", region.get("find", "")),
                more_phrases=_texts(region, "more_phrases", where),
                caption=region.get("caption", ""),
                spans=spans,
                score=float(region.get("score", 1.0)),
                source=region.get("source", raw.part.subset),
                crowd=region.get("crowd", False),
            )
        )
    return tuple(built)


def _spans(region: Mapping[str, Any], where: str) -> tuple[tuple[int, int], ...]:
    pairs = [numbers(span, 2, f"{where}.spans") for span in region.get("spans", [])]
    if any(not isinstance(place, int) for pair in pairs for place in pair):
        raise InputError(f"{where}.spans: {pairs} must be whole numbers")
    return tuple((int(start), int(end)) for start, end in pairs)


def _box(region: Mapping[str, Any], mask_HW: Mask | None, picture: Picture, notes: Notes, where: str) -> Box:
    given = [name for name in _BOXES if name in region]
    if len(given) > 1 or ("find" in region and "spans" in region):
        one = " and ".join(given) if len(given) > 1 else "find and spans"
        raise InputError(f"{where}: {one} given, at most one of them is allowed")
    if given:
        a, b, c, d = numbers(region[given[0]], 4, f"{where}.{given[0]}")
        if given[0] == "box_xyxy_unit":
            a, b, c, d = a * picture.width_px, b * picture.height_px, c * picture.width_px, d * picture.height_px
        return boxed(xyxy_from_xywh(a, b, c, d) if given[0] == "box_xywh_px" else (a, b, c, d), picture, notes)
    if mask_HW is None:
        raise InputError(f"{where}: needs a mask or one of {', '.join(_BOXES)}")
    box = box_of_mask(mask_HW)
    if box is None:
        raise InputError(f"{where}.mask: has no pixel")
    return box


def _mask(raw: RawPart, plain: Any, picture: Picture, where: str) -> Mask:
    try:
        if isinstance(plain, str):
            mask_HW: Mask = np.asarray(decode_image(raw.mask_png(plain))).max(axis=-1) > 0
            return mask_HW
        if isinstance(plain, list):
            return mask_from_polygons(plain, width_px=picture.width_px, height_px=picture.height_px)
        checked(plain, {"size": list, "counts": (str, list)}, "run lengths")
        return mask_from_coco(plain)
    except (InputError, OverflowError, TypeError, ValueError) as error:
        raise InputError(f"{where}.mask: {error}") from None
