"""RefCOCO, RefCOCO+ and RefCOCOg: expressions that mean one object, in the layout of the REFER tool."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from orchestrator.errors import InputError
from stages.convert.coco import id_of, mask_of
from stages.convert.pickles import read_pickle
from stages.convert.raw import Attempt, BrokenRecord, Found, Notes, Picture, RawPart, boxed
from stages.plain import numbers
from stages.samples import Region
from stages.vision import rle_from_mask, xyxy_from_xywh


def read(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample an image of the split: a region an object, with every expression that means it.

    A reference has a file_name of its own, with a suffix nobody needs: the image is found through instances.json.
    """
    path = raw.root / raw.part.annotations[0]
    references = read_pickle(path)
    if not isinstance(references, list):
        raise InputError(f"{path} holds a {type(references).__name__}, a list of references is needed")
    coco = raw.object(1, "images", "annotations")
    images = {id_of(image, "id"): image for image in coco["images"]}
    objects = {id_of(annotation, "id"): annotation for annotation in coco["annotations"]}
    of_image: dict[Any, list[Any]] = {}
    for number, reference in enumerate(references):
        if not isinstance(reference, dict) or not isinstance(reference.get("image_id"), int | str):
            raise InputError(f"{path}: reference {number} has no image_id")
        if reference.get("split") == raw.part.split:
            of_image.setdefault(reference["image_id"], []).append(reference)
    raw.about = len(of_image)
    for number, (image_id, of_this) in enumerate(of_image.items()):
        name = raw.record(number, {"image_id": image_id}, "image_id")
        build = partial(_found, raw, notes, number, name, images.get(image_id), of_this, objects)
        yield from notes.attempt(name, build)


def _found(
    raw: RawPart, notes: Notes, number: int, name: str, image: Any, references: list[Any], objects: dict[Any, Any]
) -> Found:
    if image is None:
        raise BrokenRecord("image is not in instances.json", name)
    picture = raw.picture(image["file_name"], (image["width"], image["height"]))
    made = [
        notes.judged(
            f"{name} ref {id_of(one, 'ref_id')}", partial(_region, one, objects, picture, notes), piece="region"
        )
        for one in references
    ]
    regions = tuple(region for region in made if region is not None)
    if not regions:
        raise BrokenRecord("no region is left", picture.name)
    return picture.found(raw.key(number, image["file_name"]), regions=regions)


def _region(reference: Any, objects: dict[Any, Any], picture: Picture, notes: Notes) -> Region:
    object_id = id_of(reference, "ann_id")
    annotation = objects.get(object_id)
    if object_id is None or annotation is None or annotation["image_id"] != reference["image_id"]:
        raise BrokenRecord("object is not in instances.json", f"ann_id {object_id}")
    expressions = [sentence["sent"].strip() for sentence in reference["sentences"]]
    if not expressions or not all(expressions):
        raise BrokenRecord("an expression is empty", f"{len(expressions)} expressions")
    return Region(
        box_xyxy_px=boxed(xyxy_from_xywh(*numbers(annotation["bbox"], 4, "bbox")), picture, notes),
        mask=rle_from_mask(mask_of(annotation["segmentation"], picture)),
        phrase=expressions[0],
        more_phrases=tuple(expressions[1:]),
        source="refcoco",
    )
