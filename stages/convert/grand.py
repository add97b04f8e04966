"""GranD: objects with masks, floating objects without, and captions whose phrases point at them."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stages.convert.coco import mask_of
from stages.convert.raw import Attempt, BrokenRecord, Found, Notes, Picture, RawPart, boxed
from stages.plain import numbers
from stages.samples import Caption, Grounding, Region
from stages.vision import rle_from_mask

_NOISE = re.compile(r"^\s*(?:ass)?istant:\s*", re.IGNORECASE)  # what is left of a chat prompt in front of attributes


def read(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample a file: its caption is the dense one, further captions are the short ones."""
    for number, path in enumerate(raw.files(0, ".json")):
        name = f"{raw.record(number, None)} {path.name}"
        yield from notes.attempt(name, partial(_found, raw, notes, number, name, path))


def _found(raw: RawPart, notes: Notes, number: int, name: str, path: Path) -> Found:
    ((file_name, plain),) = json.loads(path.read_bytes()).items()
    picture = raw.picture(file_name)
    places: dict[Any, int] = {}  # id of an object -> its place in `regions`
    regions: list[Region] = []
    for one in plain["objects"] + plain["floating_objects"]:
        object_id = one.get("id")
        region = notes.judged(f"{name} object {object_id}", partial(_region, one, picture, notes), piece="region")
        if region is not None:
            places[object_id] = len(regions)
            regions.append(region)
    captions = [_caption(said, places, notes) for said in _said(plain)]
    if not captions and not regions:
        raise BrokenRecord("no caption and no region is left", picture.name)
    first = captions[0] if captions else Caption(text="")
    return picture.found(
        raw.key(number, file_name),
        caption=first.text,
        regions=tuple(_placed(region, at, first) for at, region in enumerate(regions)),
        more_captions=tuple(captions[1:]),
    )


def _said(plain: Mapping[str, Any]) -> list[Any]:
    """Lists the captions, the dense one first; files of an early level have none, or not all."""
    captions = [plain.get("dense_caption"), *(plain.get("short_captions") or [])]
    return [said for said in captions if said and said["caption"].strip()]


def _region(plain: Any, picture: Picture, notes: Notes) -> Region:
    x0, y0, x1, y1 = numbers(plain["bbox"], 4, "bbox")
    labels = [str(label) for label in plain["labels"]]
    attributes = plain.get("attributes") or []
    if isinstance(attributes, str):
        attributes = [attributes]
    segmentation = plain.get("segmentation")
    return Region(
        box_xyxy_px=boxed((x0, y0, x1, y1), picture, notes),
        mask=None if segmentation is None else rle_from_mask(mask_of(segmentation, picture)),
        phrase=labels[0],
        more_phrases=tuple(labels[1:]),
        caption="; ".join(_NOISE.sub("", attribute).strip() for attribute in attributes),
        score=float(plain["score"]),
        source="grand",
    )


def _caption(said: Any, places: Mapping[Any, int], notes: Notes) -> Caption:
    """Makes a caption; phrases that stand nowhere in it, or mean nothing that was kept, stay words."""
    text, groundings = said["caption"], []
    for detail in said["details"]:
        ids = detail["ids"] if "ids" in detail else [detail["id"]]
        regions = tuple(dict.fromkeys(places[one] for one in ids if one in places))
        span = _span(text, detail)
        if span is None:
            notes.repair("phrase is not in the caption: caption kept without its regions")
        elif not regions:
            notes.repair("phrase means no object that was kept: caption kept without its regions")
        else:
            groundings.append(Grounding(span=span, regions=regions))
    return Caption(text=text, groundings=tuple(groundings))


def _span(text: str, detail: Any) -> tuple[int, int] | None:
    """Returns where a phrase stands: the place given, or where else it is found, ignoring case."""
    phrase = detail["phrase"].strip()
    start, end = (int(edge) for edge in detail["tokens_positive"])
    if 0 <= start < end <= len(text) and text[start:end].strip().lower() == phrase.lower():
        return start, end
    found = re.search(re.escape(phrase), text, re.IGNORECASE) if phrase else None
    return found.span() if found else None


def _placed(region: Region, at: int, caption: Caption) -> Region:
    spans = tuple(one.span for one in caption.groundings if at in one.regions)
    return region if not spans else replace(region, spans=spans)
