"""Visual Genome: region descriptions with boxes, in its own layout and in GRiT's COCO-style one."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from stages.convert.raw import Attempt, BrokenRecord, Found, Notes, Picture, RawPart, boxed
from stages.samples import Region, Sample
from stages.vision import xyxy_from_xywh

_SOURCE = "visual_genome"

# id, phrase, x, y, width, height: the last four in pixels
Described = tuple[Any, Any, Any, Any, Any, Any]


def read_regions(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample an image of region_descriptions.json, sizes from image_data.json, file <image id>.jpg."""
    sizes = {plain["image_id"]: (plain["width"], plain["height"]) for plain in raw.list(1)}

    def found(number: int, plain: Any, name: str) -> Found:
        if plain["id"] not in sizes:
            raise BrokenRecord("image is not in image_data.json", str(plain["id"]))
        picture = raw.picture(f"{plain['id']}.jpg", sizes[plain["id"]])
        described = [
            (_region_id(region), region["phrase"], region["x"], region["y"], region["width"], region["height"])
            for region in plain["regions"]
        ]
        return _found(raw.key(number, f"{plain['id']}.jpg"), picture, described, name, notes)

    for number, plain in enumerate(raw.list(0)):
        name = raw.record(number, plain, "id")
        yield from notes.attempt(name, partial(found, number, plain, name))


def read_coco(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample a picture of train.json or test_caption.json; image entries that share a file are joined."""
    coco = raw.object(0, "images", "annotations")
    entries: dict[str, list[Any]] = {}
    for image in coco["images"]:
        entries.setdefault(str(image["file_name"]), []).append(image)
    raw.about = len(entries)
    annotations: dict[Any, list[Any]] = {}
    for annotation in coco["annotations"]:
        annotations.setdefault(annotation["image_id"], []).append(annotation)

    def found(number: int, images: list[Any], name: str) -> Found:
        picture = raw.picture(images[0]["file_name"], (images[0]["width"], images[0]["height"]))
        described = [
            (annotation["id"], annotation["caption"], *annotation["bbox"])
            for image in images
            for annotation in annotations.get(image["id"], ())
        ]
        return _found(raw.key(number, images[0]["file_name"]), picture, described, name, notes)

    for number, (file_name, images) in enumerate(entries.items()):
        name = raw.record(number, {"file": file_name}, "file")
        yield from notes.attempt(name, partial(found, number, images, name))


def _found(key: str, picture: Picture, described: Iterable[Any], name: str, notes: Notes) -> Found:
    """Keeps every region that can be kept; a picture without any is broken."""
    regions = tuple(region for one in described for region in _region(one, picture, name, notes))
    if not regions:
        raise BrokenRecord("no region is left", picture.name)
    sample = Sample(
        key=key, image=picture.data, width_px=picture.width_px, height_px=picture.height_px, regions=regions
    )
    return Found(sample=sample, picture=picture.name)


def _region(one: Described, picture: Picture, name: str, notes: Notes) -> Iterator[Region]:
    """Yields the region; a broken one is noted and left out alone, for regions do not depend on each other."""
    region_id, phrase, x, y, width, height = one
    if not (text := phrase.strip()):
        notes.skip(f"{name} region {region_id}", "region: phrase is empty", repr(phrase))
        return
    try:
        box = boxed(xyxy_from_xywh(x, y, width, height), picture, notes)
    except BrokenRecord as error:
        notes.skip(f"{name} region {region_id}", f"region: {error.reason}", error.detail)
        return
    yield Region(box_xyxy_px=box, mask=None, phrase=text, source=_SOURCE)


def _region_id(region: Any) -> Any:
    return region["region_id"] if "region_id" in region else region["id"]  # older releases call it id
