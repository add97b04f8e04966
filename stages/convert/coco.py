"""COCO's captions and instances, and data sets in its layout whose categories are parts of objects."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from stages.convert.raw import Attempt, BrokenRecord, Found, Notes, Picture, RawPart, boxed
from stages.plain import numbers
from stages.samples import Caption, Region
from stages.vision import Mask, mask_from_coco, mask_from_polygons, rle_from_mask, xyxy_from_xywh

# place in the file, name for the notes, image entry, its annotations
FoundOfImage = Callable[[int, str, Any, list[Any]], Found]
Phrases = Mapping[Any, tuple[str, ...]]  # of a category, by its id: the first is its phrase


def read_captions(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample an image, with all of its captions."""
    coco = raw.object(0, "images", "annotations")

    def found(number: int, name: str, image: Any, annotations: list[Any]) -> Found:
        picture = raw.picture(image["file_name"], (image["width"], image["height"]))
        said = [notes.judged(_part(name, one), partial(_caption, one), piece="caption") for one in annotations]
        texts = [text for text in said if text is not None]
        if not texts:
            raise BrokenRecord("image has no captions", picture.name)
        return picture.found(
            raw.key(number, image["file_name"]),
            caption=texts[0],
            more_captions=tuple(Caption(text=text) for text in texts[1:]),
        )

    yield from attempts_of_images(raw, notes, coco, found)


def read_instances(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample an image; a region is one object, its phrase the name of its category."""
    yield from _read_instances(raw, notes, lambda name: (name,))


def read_parts(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Reads PACO and PASCAL-Part: their categories are objects, or `object:part`."""
    yield from _read_instances(raw, notes, _part_phrases)


def _read_instances(raw: RawPart, notes: Notes, phrases_of: Callable[[str], tuple[str, ...]]) -> Iterator[Attempt]:
    coco = raw.object(0, "images", "annotations", "categories")
    phrases = {category["id"]: phrases_of(str(category["name"])) for category in coco["categories"]}
    yield from attempts_of_images(raw, notes, coco, partial(_objects, raw, notes, phrases))


def _objects(
    raw: RawPart, notes: Notes, phrases: Phrases, number: int, name: str, image: Any, annotations: list[Any]
) -> Found:
    picture = raw.picture(image["file_name"], (image["width"], image["height"]))
    made = [
        notes.judged(_part(name, one), partial(_region, one, phrases, picture, notes, raw.part.subset), piece="region")
        for one in annotations
    ]
    regions = tuple(region for region in made if region is not None)
    if not regions:
        raise BrokenRecord("no region is left" if annotations else "image has no annotations", picture.name)
    return picture.found(raw.key(number, image["file_name"]), regions=regions)


def _region(annotation: Any, phrases: Phrases, picture: Picture, notes: Notes, source: str) -> Region:
    phrase, *more = phrases[annotation["category_id"]]
    mask_HW = mask_of(annotation["segmentation"], picture)
    return Region(
        box_xyxy_px=boxed(xyxy_from_xywh(*numbers(annotation["bbox"], 4, "bbox")), picture, notes),
        mask=rle_from_mask(mask_HW),
        phrase=phrase,
        more_phrases=tuple(more),
        source=source,
        crowd=bool(annotation["iscrowd"]),
    )


def mask_of(segmentation: Any, picture: Picture) -> Mask:
    """Decodes a list of polygons, or run lengths, compressed or not; refuses one that is empty or of another size."""
    size = {"width_px": picture.width_px, "height_px": picture.height_px}
    polygons = isinstance(segmentation, list)
    mask_HW = mask_from_polygons(segmentation, **size) if polygons else mask_from_coco(segmentation)
    if mask_HW.shape != (picture.height_px, picture.width_px):
        shape = f"{mask_HW.shape[1]} x {mask_HW.shape[0]}"
        raise BrokenRecord("mask has another size than its image", f"{shape} for {picture.name}")
    if not mask_HW.any():
        raise BrokenRecord("mask is empty", picture.name)
    return mask_HW


def attempts_of_images(
    raw: RawPart, notes: Notes, coco: Mapping[str, list[Any]], found: FoundOfImage
) -> Iterator[Attempt]:
    """Yields an attempt an image entry with its annotations, then one for each annotation that belongs to no image."""
    raw.about = len(coco["images"])
    of_image, lost = by_image(coco)
    for number, image in enumerate(coco["images"]):
        name = raw.record(number, image, "id", "file_name")
        yield from notes.attempt(name, partial(found, number, name, image, of_image.get(id_of(image, "id"), [])))
    yield from attempts_of_lost(raw, notes, lost)


def by_image(coco: Mapping[str, list[Any]]) -> tuple[dict[int | str | None, list[Any]], list[tuple[int, Any]]]:
    """Returns image id -> its annotations, and those that belong to no image, each with its place in the file."""
    ids = (id_of(image, "id") for image in coco["images"])
    of_image: dict[int | str | None, list[Any]] = {image_id: [] for image_id in ids if image_id is not None}
    lost = []
    for number, annotation in enumerate(coco["annotations"]):
        image_id = id_of(annotation, "image_id")
        if image_id is None or image_id not in of_image:
            lost.append((number, annotation))
        else:
            of_image[image_id].append(annotation)
    return of_image, lost


def attempts_of_lost(raw: RawPart, notes: Notes, lost: list[tuple[int, Any]]) -> Iterator[Attempt]:
    """Yields an attempt for each annotation that belongs to no image, so that each is named and counted."""
    for number, annotation in lost:
        yield from notes.attempt(f"{raw.part.subset} annotations[{number}]", partial(_refuse, annotation))


def id_of(entry: Any, key: str) -> int | str | None:
    """Returns what an entry has under the key, where that can name something."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, int | str) else None


def _refuse(annotation: Any) -> Found:
    raise BrokenRecord("annotation belongs to no image", repr(annotation)[:200])


def _part(name: str, annotation: Any) -> str:
    return f"{name} annotation {id_of(annotation, 'id')}"


def _caption(annotation: Any) -> str:
    text = annotation["caption"].strip()
    if not text:
        raise BrokenRecord("text is empty", repr(annotation)[:200])
    text.encode("utf-8")  # refuses half a character
    return str(text)


def _part_phrases(category: str) -> tuple[str, ...]:
    """Says `car_(automobile):wheel` in both ways: "car wheel" and "the wheel of the car"."""
    words = [name.partition("_(")[0].replace("_", " ").strip() for name in category.split(":", 1)]
    return (words[0],) if len(words) == 1 else (" ".join(words), f"the {words[1]} of the {words[0]}")
