"""Draws samples of a set of shards as a person wants to see them: image, boxes, masks, and every word said of them."""

import colorsys
import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from PIL import Image, ImageDraw

from orchestrator.data.collection import Collection
from orchestrator.data.reader import ShardReader
from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.records import record
from stages.pictures import Mark, Panel, contact_sheet, draw_panels
from stages.samples import Caption, Region, Sample, TimedPoint
from stages.vision import decode_image, mask_from_rle, union

MARKS_SHOWN = 12  # regions of one sample; more make a picture nobody reads
WORDS_SHOWN = 40  # of one text
NOTES_SHOWN = 6
COLUMNS_PX = 1600  # about as wide as a screen
_TEXTS = ("json", "txt", "caption", "cls")


@record
class Look:
    """A sample that was drawn."""

    tar: str
    number: int  # within the tar
    key: str
    picture: Image.Image


def peek(collection: Collection, samples: int, seed: int) -> list[Look]:
    """Draws this many samples, chosen by the seed; fewer if the set has no more."""
    if samples < 1:
        raise InputError(f"--samples must be 1 or more, not {samples}")
    counts = [entry.count() for entry in collection.entries]
    chosen = sorted(random.Random(seed).sample(range(sum(counts)), min(samples, sum(counts))))  # noqa: S311
    if not chosen:
        raise InputError(f"{collection.path} holds no samples to look at")
    return list(_looks(collection, counts, chosen))


def sheet(looks: Sequence[Look]) -> Image.Image:
    """Puts what was drawn into one picture."""
    widest = max(look.picture.width for look in looks)
    return contact_sheet([look.picture for look in looks], columns=max(1, COLUMNS_PX // widest))


def _looks(collection: Collection, counts: Sequence[int], chosen: Sequence[int]) -> Iterator[Look]:
    first = 0
    for entry, count in zip(collection.entries, counts, strict=True):
        here = [number - first for number in chosen if first <= number < first + count]
        first += count
        if not here:
            continue
        try:
            reader = entry.open()
        except (DamagedArtifact, OSError) as error:
            for number in here:
                name = f"sample {number} of {entry.name}"
                yield Look(tar=entry.name, number=number, key="", picture=_broken(name, error))
            continue
        try:
            for number in here:
                key, picture = _drawn(reader, number)
                yield Look(tar=entry.name, number=number, key=key, picture=picture)
        finally:
            reader.close()


def _drawn(reader: ShardReader, number: int) -> tuple[str, Image.Image]:
    key = reader.index.key(number) if number < len(reader.index) else f"sample {number}"
    try:
        _, members = reader.read(number)
        return key, draw_sample(key, members)
    except InputError as error:  # what is broken is worth a look, too
        return key, _broken(key, error)


def _broken(name: str, error: Exception) -> Image.Image:
    empty = Image.new("RGB", (384, 60), "#F3D9D9")
    return draw_panels(empty, [Panel(title=name, caption=f"cannot be shown: {error}", marks=())])


def draw_sample(key: str, members: Mapping[str, bytes]) -> Image.Image:
    """Draws one sample: of our schema with everything in it, of others the image and the texts."""
    if not _is_ours(members):
        return _draw_foreign(key, members)
    sample = Sample.from_members(key, members)
    image = decode_image(sample.image)
    shown = sorted(sample.regions, key=_area, reverse=True)[:MARKS_SHOWN]
    regions = [region for region in sample.regions if region in shown]
    first = Panel(
        title=key, caption=sample.caption or " ", marks=tuple(_marks(regions)), notes=tuple(_notes(sample, regions))
    )
    others = [_grounded(sample, caption) for caption in sample.more_captions if caption.groundings]
    return draw_panels(_with_trace(image, sample.points), [first, *others[:2]])


def _marks(regions: Sequence[Region]) -> Iterator[Mark]:
    """Yields what is to be marked; regions that share their words share a number and a colour."""
    together: dict[object, list[Region]] = {}
    for number, region in enumerate(regions):
        alone = region.mask is None or not region.spans
        together.setdefault(number if alone else region.spans, []).append(region)
    for several in together.values():
        first = several[0]
        masks = [mask_from_rle(region.mask) for region in several if region.mask is not None]
        yield Mark(
            phrase=_words_of(first),
            span=first.spans[0] if first.spans else None,
            mask_HW=union(masks) if masks else None,
            box_xyxy_px=None if masks else first.box_xyxy_px,
        )


def _words_of(region: Region) -> str:
    phrases = " / ".join(words for words in (region.phrase, *region.more_phrases) if words)
    return _short(": ".join(words for words in (phrases, region.caption) if words)) + " (crowd)" * region.crowd


def _grounded(sample: Sample, caption: Caption) -> Panel:
    """Shows another caption with the regions that its words mean."""
    marks = [
        mark
        for grounding in caption.groundings[:MARKS_SHOWN]
        for mark in _marks([replace(sample.regions[number], spans=(grounding.span,)) for number in grounding.regions])
    ]
    return Panel(title="another caption", caption=caption.text, marks=tuple(marks))


def _notes(sample: Sample, shown: Sequence[Region]) -> Iterator[str]:
    """Says what the picture and the caption do not."""
    if hidden := len(sample.regions) - len(shown):
        yield f"and {hidden} more regions, smaller ones"
    texts = [caption.text for caption in sample.more_captions if not caption.groundings]
    lines = [f"also: {_short(text)}" for text in texts]
    lines += [f"Q: {_short(turn.question)} A: {_short(turn.answer)}" for turn in sample.turns]
    yield from lines[:NOTES_SHOWN]
    if more := len(lines) - NOTES_SHOWN:
        yield f"and {more} more texts" if more > 0 else ""
    if sample.points:
        yield f"trace of {len(sample.points)} points, from dark to light"


def _with_trace(image: Image.Image, points: Sequence[TimedPoint]) -> Image.Image:
    """Draws where a speaker pointed, from dark to light."""
    if not points:
        return image
    traced = image.copy()
    pen, width_px = ImageDraw.Draw(traced), max(2, max(image.size) // 160)
    places = [(point.x_unit * image.width, point.y_unit * image.height) for point in points]
    for number, (start, end) in enumerate(pairwise(places)):
        pen.line((*start, *end), fill=_shade(number / len(places)), width=width_px)
    return traced


def _shade(time_unit: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(0.62 - 0.47 * time_unit, 1.0 - 0.4 * time_unit, 0.35 + 0.65 * time_unit)
    return round(255 * red), round(255 * green), round(255 * blue)


def _draw_foreign(key: str, members: Mapping[str, bytes]) -> Image.Image:
    notes = [f"{name}: {len(content):,} bytes" for name, content in members.items()]
    text = next((members[name].decode("utf-8", "replace") for name in _TEXTS if name in members), "")
    for content in members.values():
        try:
            image = decode_image(content)
        except InputError:
            continue
        return draw_panels(image, [Panel(title=key, caption=_short(text) or " ", marks=(), notes=tuple(notes))])
    empty = Image.new("RGB", (384, 60), "#E8E8E8")
    return draw_panels(empty, [Panel(title=key, caption=_short(text) or "no image", marks=(), notes=tuple(notes))])


def _is_ours(members: Mapping[str, bytes]) -> bool:
    try:
        plain: Any = json.loads(members.get("json", b"null"))
    except ValueError:
        return False
    return isinstance(plain, dict) and "schema" in plain


def _area(region: Region) -> float:
    x0, y0, x1, y1 = region.box_xyxy_px
    return (x1 - x0) * (y1 - y0)


def _short(text: str) -> str:
    words = text.split()
    return " ".join(words) if len(words) <= WORDS_SHOWN else " ".join(words[:WORDS_SHOWN]) + " …"


def as_png(picture: Image.Image) -> bytes:
    """Encodes a picture for writing."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
