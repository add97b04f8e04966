"""The contract between converters, annotators and training: what one tar member pair holds."""

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from orchestrator.errors import InputError
from orchestrator.records import record

SCHEMA = 1  # of the JSON member; a reader refuses a version it does not know

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


@record
class Rle:
    """A COCO compressed run-length mask."""

    height_px: int
    width_px: int
    counts: str


@record
class Region:
    """One described piece of an image. Pixel units of the stored image, origin top left."""

    box_xyxy_px: tuple[float, float, float, float]
    mask: Rle | None  # same height and width as the image
    phrase: str  # a few words
    caption: str = ""  # a sentence or more; may be empty
    spans: tuple[tuple[int, int], ...] = ()  # [start, end) code points of Sample.caption that mean this region
    score: float = 1.0  # 1.0 = a person wrote it
    source: str = ""
    crowd: bool = False


@record
class TimedPoint:
    """Where a speaker pointed while saying a word."""

    word: str
    x_unit: float  # 0..1 of the width; may leave it a little
    y_unit: float
    time_s: float


@record
class Turn:
    """One question and its answer."""

    question: str  # without a placeholder for the image: the trainer knows where its image tokens belong
    answer: str


@record
class Sample:
    """An image and everything said about it; refuses boxes, masks and spans that do not fit."""

    key: str
    image: bytes  # JPEG or PNG, as stored
    width_px: int
    height_px: int
    caption: str = ""
    regions: tuple[Region, ...] = ()
    points: tuple[TimedPoint, ...] = ()
    turns: tuple[Turn, ...] = ()

    extensions: ClassVar[tuple[str, ...]] = ("jpg", "png")

    def __post_init__(self) -> None:
        """Refuses what does not fit the image or the caption."""
        if min(self.width_px, self.height_px) < 1:
            raise InputError(f"sample {self.key!r}: width_px and height_px must be above 0")
        for number, region in enumerate(self.regions):
            if problem := _region_problem(region, self):
                raise InputError(f"sample {self.key!r}: regions[{number}].{problem}")

    def to_members(self) -> dict[str, bytes]:
        """Encodes the sample as WebDataset members: extension -> bytes ("jpg" or "png", and "json").

        The JSON is canonical (sorted keys, no spaces), so that equal samples are equal bytes.
        """
        text = json.dumps(
            _plain(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )  # fmt: skip
        return {_extension(self.key, self.image): self.image, "json": text.encode("utf-8")}

    @classmethod
    def from_members(cls, key: str, members: Mapping[str, bytes]) -> "Sample":
        """Decodes what `to_members` wrote; unknown JSON keys are refused by name."""
        images = [extension for extension in cls.extensions if extension in members]
        if len(images) != 1 or "json" not in members:
            needed = f"one of {' or '.join(cls.extensions)}, and json"
            raise InputError(f"sample {key!r} has the members {', '.join(sorted(members))}; needed: {needed}")
        try:
            plain = json.loads(members["json"])
        except ValueError as error:
            raise InputError(f"sample {key!r}: its json cannot be read ({error})") from None
        return _sample(key, members[images[0]], plain)


def _region_problem(region: Region, sample: Sample) -> str | None:
    x0, y0, x1, y1 = region.box_xyxy_px
    if not (0 <= x0 < x1 <= sample.width_px and 0 <= y0 < y1 <= sample.height_px):  # also false for nan
        return f"box_xyxy_px: {region.box_xyxy_px} is not a box inside {sample.width_px} x {sample.height_px} px"
    mask = region.mask
    if mask is not None and (mask.height_px, mask.width_px) != (sample.height_px, sample.width_px):
        size = f"{mask.width_px} x {mask.height_px}"
        return f"mask: {size} px, but the image has {sample.width_px} x {sample.height_px} px"
    for start, end in region.spans:
        if not 0 <= start < end <= len(sample.caption):
            return f"spans: [{start}, {end}) is not inside the caption of {len(sample.caption)} characters"
    return None if math.isfinite(region.score) else f"score: {region.score} is not a number"


def _extension(key: str, image: bytes) -> str:
    if image.startswith(_JPEG):
        return "jpg"
    if image.startswith(_PNG):
        return "png"
    raise InputError(f"sample {key!r}: its image is neither a JPEG nor a PNG")


def _plain(sample: Sample) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "width_px": sample.width_px,
        "height_px": sample.height_px,
        "caption": sample.caption,
        "regions": [_plain_region(region) for region in sample.regions],
        "points": [
            {"word": point.word, "x_unit": point.x_unit, "y_unit": point.y_unit, "time_s": point.time_s}
            for point in sample.points
        ],
        "turns": [{"question": turn.question, "answer": turn.answer} for turn in sample.turns],
    }


def _plain_region(region: Region) -> dict[str, Any]:
    mask = region.mask
    size = None if mask is None else {"height_px": mask.height_px, "width_px": mask.width_px, "counts": mask.counts}
    return {
        "box_xyxy_px": [float(edge) for edge in region.box_xyxy_px],
        "mask": size,
        "phrase": region.phrase,
        "caption": region.caption,
        "spans": [list(span) for span in region.spans],
        "score": float(region.score),
        "source": region.source,
        "crowd": region.crowd,
    }


def _sample(key: str, image: bytes, plain: Any) -> Sample:
    where = f"sample {key!r}"
    fields = {"width_px": int, "height_px": int, "caption": str, "regions": list, "points": list, "turns": list}
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        given = plain.get("schema") if isinstance(plain, dict) else type(plain).__name__
        raise InputError(f"{where}: schema {given!r} is not known; this version reads schema {SCHEMA}")
    values = _checked({name: value for name, value in plain.items() if name != "schema"}, fields, where)
    regions = [_region(region, f"{where}: regions[{number}]") for number, region in enumerate(values["regions"])]
    points = [_point(point, f"{where}: points[{number}]") for number, point in enumerate(values["points"])]
    turns = [
        Turn(**_checked(turn, {"question": str, "answer": str}, f"{where}: turns[{number}]"))
        for number, turn in enumerate(values["turns"])
    ]
    return Sample(
        key=key, image=image, width_px=values["width_px"], height_px=values["height_px"], caption=values["caption"],
        regions=tuple(regions), points=tuple(points), turns=tuple(turns),
    )  # fmt: skip


def _region(plain: Any, where: str) -> Region:
    fields = {
        "box_xyxy_px": list, "mask": (dict, type(None)), "phrase": str, "caption": str, "spans": list,
        "score": (int, float), "source": str, "crowd": bool,
    }  # fmt: skip
    values = _checked(plain, fields, where)
    x0, y0, x1, y1 = _numbers(values["box_xyxy_px"], 4, f"{where}.box_xyxy_px")
    spans = [_numbers(span, 2, f"{where}.spans") for span in values["spans"]]
    mask = values["mask"]
    if mask is not None:
        mask = Rle(**_checked(mask, {"height_px": int, "width_px": int, "counts": str}, f"{where}.mask"))
    return Region(
        box_xyxy_px=(x0, y0, x1, y1), mask=mask, phrase=values["phrase"], caption=values["caption"],
        spans=tuple((int(start), int(end)) for start, end in spans), score=values["score"], source=values["source"],
        crowd=values["crowd"],
    )  # fmt: skip


def _point(plain: Any, where: str) -> TimedPoint:
    number = (int, float)
    return TimedPoint(**_checked(plain, {"word": str, "x_unit": number, "y_unit": number, "time_s": number}, where))


def _checked(plain: Any, fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the mapping if it has exactly these fields, of these types."""
    if not isinstance(plain, dict):
        raise InputError(f"{where}: {type(plain).__name__} given, a mapping of {', '.join(fields)} is needed")
    if unknown := sorted(set(plain) - set(fields)):
        raise InputError(f"{where}: unknown key {', '.join(unknown)}; allowed: {', '.join(fields)}")
    if missing := [name for name in fields if name not in plain]:
        raise InputError(f"{where}: {', '.join(missing)} missing")
    for name, kind in fields.items():
        value = plain[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{where}.{name}: {value!r:.60} is of the wrong type")
    return plain


def _numbers(values: Any, count: int, where: str) -> list[float]:
    right = isinstance(values, list) and len(values) == count
    if not right or any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise InputError(f"{where}: {values!r:.60} given, {count} numbers are needed")
    return list(values)
