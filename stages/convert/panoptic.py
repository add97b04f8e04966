"""COCO's panoptic layout: segments whose masks lie in PNGs; those of Pix2Cap-COCO have descriptions."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.convert.coco import id_of
from stages.convert.raw import Attempt, BrokenRecord, Found, Notes, Picture, RawPart, boxed
from stages.plain import numbers
from stages.samples import Region
from stages.vision import panoptic_ids, rle_from_mask, xyxy_from_xywh


def read(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample an image; crowd segments come along, marked; descriptions are captions."""
    panoptic = raw.object(0, "images", "annotations", "categories")
    raw.about = len(panoptic["annotations"])
    images = {id_of(image, "id"): image for image in panoptic["images"]}
    names = {category["id"]: str(category["name"]) for category in panoptic["categories"]}
    raw.categories = [
        {"id": one["id"], "name": names[one["id"]], "thing": bool(one.get("isthing", True))}
        for one in panoptic["categories"]
    ]
    for number, annotation in enumerate(panoptic["annotations"]):
        name = raw.record(number, annotation, "image_id")
        yield from notes.attempt(name, partial(_found, raw, number, annotation, images, names, notes))


def _found(
    raw: RawPart, number: int, annotation: Any, images: dict[Any, Any], names: dict[Any, str], notes: Notes
) -> Found:
    image = images[annotation["image_id"]]
    picture = raw.picture(image["file_name"], (image["width"], image["height"]))
    ids_HW = panoptic_ids(raw.mask_png(annotation["file_name"]))
    if ids_HW.shape != (picture.height_px, picture.width_px):
        shape = f"{ids_HW.shape[1]} x {ids_HW.shape[0]}"
        detail = f"{annotation['file_name']}: {shape}, not {picture.width_px} x {picture.height_px}"
        raise BrokenRecord("mask has another size than its image", detail)
    regions = tuple(
        _region(segment, ids_HW, picture, names, raw.part.subset, notes) for segment in annotation["segments_info"]
    )
    if not regions:
        raise BrokenRecord("no region is left", picture.name)
    return picture.found(raw.key(number, image["file_name"]), regions=regions)


def _region(
    segment: Any, ids_HW: NDArray[np.int32], picture: Picture, names: dict[Any, str], subset: str, notes: Notes
) -> Region:
    mask_HW = ids_HW == segment["id"]
    if not mask_HW.any():
        raise BrokenRecord("segment is not in the mask", f"segment {segment['id']} of {picture.name}")
    return Region(
        box_xyxy_px=boxed(xyxy_from_xywh(*numbers(segment["bbox"], 4, "bbox")), picture, notes),
        mask=rle_from_mask(mask_HW),
        phrase=names[segment["category_id"]],
        caption=_description(segment),
        source=subset,
        crowd=bool(segment["iscrowd"]),
    )


def _description(segment: Any) -> str:
    text = segment.get("description", "")
    if isinstance(text, list):  # several descriptions of one segment: the first is as good as any
        text = text[0] if text else ""
    if not isinstance(text, str):
        raise BrokenRecord("description is not a text", repr(text)[:200])
    return text.strip()
