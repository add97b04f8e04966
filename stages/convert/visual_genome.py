"""Visual Genome: region descriptions with boxes, in its own layout and in GRiT's COCO-style one."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from stages.convert.coco import attempts_of_lost, by_image, id_of
from stages.convert.raw import Attempt, BrokenRecord, Found, Notes, Picture, RawPart, boxed
from stages.plain import numbers
from stages.samples import Region
from stages.vision import xyxy_from_xywh

_SOURCE = "visual_genome"


def read_regions(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample an image of region_descriptions.json, sizes from image_data.json, file <image id>.jpg."""
    sizes = {plain["image_id"]: (plain["width"], plain["height"]) for plain in raw.list(1)}

    def found(number: int, plain: Any, name: str) -> Found:
        if plain["id"] not in sizes:
            raise BrokenRecord("image is not in image_data.json", str(plain["id"]))
        picture = raw.picture(f"{plain['id']}.jpg", sizes[plain["id"]])
        # older releases call the id of a region `id`
        ids = [id_of(region, "region_id") or id_of(region, "id") for region in plain["regions"]]
        made = [partial(_official, region, picture, notes) for region in plain["regions"]]
        return _found(raw.key(number, f"{plain['id']}.jpg"), picture, ids, made, name, notes)

    for number, plain in enumerate(raw.list(0)):
        name = raw.record(number, plain, "id")
        yield from notes.attempt(name, partial(found, number, plain, name))


def read_coco(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample a picture of train.json or test_caption.json; image entries that share a file are joined."""
    coco = raw.object(0, "images", "annotations")
    entries: dict[int | str, list[Any]] = {}
    for place, image in enumerate(coco["images"]):
        file_name = id_of(image, "file_name")
        entries.setdefault(place if file_name is None else file_name, []).append(image)
    raw.about = len(entries)
    of_image, lost = by_image(coco)

    def found(number: int, images: list[Any], name: str) -> Found:
        picture = raw.picture(images[0]["file_name"], (images[0]["width"], images[0]["height"]))
        annotations = [annotation for image in images for annotation in of_image[image["id"]]]
        ids = [id_of(annotation, "id") for annotation in annotations]
        made = [partial(_preprocessed, annotation, picture, notes) for annotation in annotations]
        return _found(raw.key(number, images[0]["file_name"]), picture, ids, made, name, notes)

    for number, (file_name, images) in enumerate(entries.items()):
        name = raw.record(number, {"file": file_name}, "file")
        yield from notes.attempt(name, partial(found, number, images, name))
    yield from attempts_of_lost(raw, notes, lost)


def _found(
    key: str,
    picture: Picture,
    ids: Sequence[int | str | None],
    made: Sequence[Callable[[], Region]],
    name: str,
    notes: Notes,
) -> Found:
    """Keeps every region that can be kept, for they do not depend on each other; a picture without any is broken."""
    judged = [notes.judged(f"{name} region {one}", make, piece="region") for one, make in zip(ids, made, strict=True)]
    regions = tuple(region for region in judged if region is not None)
    if not regions:
        raise BrokenRecord("no region is left", picture.name)
    return picture.found(key, regions=regions)


def _official(plain: Any, picture: Picture, notes: Notes) -> Region:
    return _region(plain["phrase"], [plain["x"], plain["y"], plain["width"], plain["height"]], picture, notes)


def _preprocessed(plain: Any, picture: Picture, notes: Notes) -> Region:
    return _region(plain["caption"], plain["bbox"], picture, notes)


def _region(phrase: Any, box_xywh_px: Any, picture: Picture, notes: Notes) -> Region:
    if not (text := phrase.strip()):
        raise BrokenRecord("phrase is empty", repr(phrase))
    box = boxed(xyxy_from_xywh(*numbers(box_xywh_px, 4, "box")), picture, notes)
    return Region(box_xyxy_px=box, mask=None, phrase=text, source=_SOURCE)
