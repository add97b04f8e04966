"""GranD-f: captions whose phrases carry masks, in the four layouts its files come in."""

import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from stages.convert.coco import attempts_of_images, attempts_of_lost, by_image, id_of
from stages.convert.raw import Attempt, BrokenRecord, Found, Notes, Picture, RawPart, boxed
from stages.plain import numbers
from stages.samples import Region
from stages.vision import (
    Box,
    Mask,
    box_of_mask,
    mask_from_coco,
    mask_from_polygons,
    rle_from_mask,
    union,
    xyxy_from_xywh,
)

_SOURCE = "grand_f"

Span = tuple[int, int]


def read_groundings(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Reads GranDf_HA and OpenPsg: phrase -> its place in the caption and the parts of its mask."""

    def found(number: int, plain: Any) -> Found:
        picture = raw.picture(plain["file_name"])
        regions = []
        for phrase, grounding in plain["groundings"].items():
            start, end = grounding["token_positives"]
            mask_HW = union(mask_from_coco(part) for part in grounding["rle_masks"])
            regions.append(_region(phrase, ((int(start), int(end)),), mask_HW))
        return _found(raw.key(number, plain["file_name"]), picture, plain["caption"], regions)

    for number, plain in enumerate(raw.list(0)):
        yield from notes.attempt(raw.record(number, plain, "file_name"), partial(found, number, plain))


def read_refs(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Reads RefCOCOg: expressions with polygons; where they stand in the caption has to be found."""

    def found(number: int, plain: Any) -> Found:
        (record,) = plain.values()
        picture = raw.picture(record["img_file_name"])
        phrases = [str(ref["sentence"]).strip() for ref in record["refs"]]
        spans = spans_of(record["caption"], phrases)
        size = {"width_px": picture.width_px, "height_px": picture.height_px}
        regions = [
            _region(phrase, spans[at], mask_from_polygons(ref["segmentation"], **size))
            for at, (phrase, ref) in enumerate(zip(phrases, record["refs"], strict=True))
        ]
        _note_unplaced(regions, notes)
        return _found(raw.key(number, record["img_file_name"]), picture, record["caption"], regions)

    for number, plain in enumerate(raw.list(0)):
        name = raw.record(number, {"id": next(iter(plain), "") if isinstance(plain, dict) else ""}, "id")
        yield from notes.attempt(name, partial(found, number, plain))


def read_flickr(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Reads the merged Flickr30k files: an image entry a sentence, an annotation a box, some for the same words.

    Those of GranD-f have masks, those of MDETR do not.
    """
    coco = raw.object(0, "images", "annotations")

    def found(number: int, _: str, image: Any, annotations: list[Any]) -> Found:
        picture = raw.picture(image["file_name"], (image["width"], image["height"]))
        regions = [_flickr_region(annotation, image["caption"], picture, notes) for annotation in annotations]
        return _found(raw.key(number, image["file_name"]), picture, image["caption"], regions)

    yield from attempts_of_images(raw, notes, coco, found)


def _flickr_region(plain: Any, caption: str, picture: Picture, notes: Notes) -> Region:
    spans = tuple((int(start), int(end)) for start, end in plain["tokens_positive"])
    phrase = " ".join(caption[start:end] for start, end in spans)
    box = boxed(xyxy_from_xywh(*numbers(plain["bbox"], 4, "bbox")), picture, notes)
    if "sam_mask" not in plain:
        return Region(box_xyxy_px=box, mask=None, phrase=phrase, spans=spans, source=_SOURCE)
    return _region(phrase, spans, mask_from_coco(plain["sam_mask"]), box)


def read_pair(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Reads the benchmark's pair of files: captions with labels, and masks in the order of the labels."""
    captions, masks = raw.object(0, "annotations"), raw.object(1, "images", "annotations")
    raw.about = len(captions["annotations"])
    images = {id_of(image, "id"): image for image in masks["images"]}
    of_image, lost = by_image(masks)

    def found(number: int, plain: Any) -> Found:
        image_id = plain["image_id"]
        image = images.get(image_id, {})
        picture = raw.picture(image.get("file_name", f"{image_id}.jpg"))
        labels = [str(label) for label in plain["labels"]]
        segmentations = [annotation["segmentation"] for annotation in of_image.get(image_id, ())]
        if len(labels) != len(segmentations):
            raise BrokenRecord("labels and masks differ in number", f"{len(labels)} and {len(segmentations)}")
        spans = spans_of(plain["caption"], labels)
        regions = [
            _region(label, spans[at], mask_from_coco(segmentation))
            for at, (label, segmentation) in enumerate(zip(labels, segmentations, strict=True))
        ]
        _note_unplaced(regions, notes)
        return _found(raw.key(number, str(image_id)), picture, plain["caption"], regions)

    for number, plain in enumerate(captions["annotations"]):
        yield from notes.attempt(raw.record(number, plain, "image_id"), partial(found, number, plain))
    yield from attempts_of_lost(raw, notes, lost)


def spans_of(caption: str, phrases: Iterable[str]) -> list[tuple[Span, ...]]:
    """Finds each phrase in the caption, ignoring case; no two share a character, longer ones choose first.

    A phrase that stands only inside words already taken gets what is left of it; one that is not there gets nothing.
    """
    wanted = list(enumerate(phrases))
    taken: list[Span] = []
    found: list[tuple[Span, ...]] = [() for _ in wanted]
    for at, phrase in sorted(wanted, key=lambda item: (-len(item[1]), item[0])):
        places = [match.span() for match in re.finditer(re.escape(phrase), caption, re.IGNORECASE)] if phrase else []
        free = [place for place in places if not any(_overlap(place, other) for other in taken)]
        span = free[0] if free else _trimmed(caption, places, taken)
        if span is not None:
            taken.append(span)
            found[at] = (span,)
    return found


def _trimmed(caption: str, places: list[Span], taken: list[Span]) -> Span | None:
    for start, end in places:
        left = max([start] + [other for first, other in taken if first <= start < other])
        right = min([end] + [first for first, other in taken if left <= first < end])
        words = caption[left:right].strip()
        left += caption[left:right].find(words)
        right = left + len(words)
        if words and not any(_overlap((left, right), other) for other in taken):
            return (left, right)
    return None


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _region(phrase: str, spans: tuple[Span, ...], mask_HW: Mask, box: Box | None = None) -> Region:
    around = box_of_mask(mask_HW)
    if around is None:
        raise BrokenRecord("mask is empty", repr(phrase)[:120])
    return Region(
        box_xyxy_px=around if box is None else box,
        mask=rle_from_mask(mask_HW),
        phrase=phrase,
        spans=spans,
        source=_SOURCE,
    )


def _note_unplaced(regions: Iterable[Region], notes: Notes) -> None:
    for region in regions:
        if not region.spans:
            notes.repair("phrase is not in the caption: region kept without its place")


def _found(key: str, picture: Picture, caption: Any, regions: list[Region]) -> Found:
    """Builds the sample; one wrong phrase breaks it, for a caption with a mask missing teaches the wrong thing."""
    if not isinstance(caption, str) or not caption.strip():
        raise BrokenRecord("caption is empty", repr(caption)[:120])
    if not regions:
        raise BrokenRecord("no phrase is grounded", picture.name)
    return picture.found(key, caption=caption, regions=tuple(regions))
