"""The contract between converters, annotators and training: what one tar member pair holds."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, TypeVar

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.plain import NUMBER, checked, numbers

SCHEMA = 1  # of the JSON member; a reader refuses a version it does not know

T = TypeVar("T")
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
    more_phrases: tuple[str, ...] = ()  # other words for the same region
    caption: str = ""  # a sentence or more; may be empty
    spans: tuple[tuple[int, int], ...] = ()  # [start, end) code points of Sample.caption that mean this region
    score: float = 1.0  # 1.0 = a person wrote it
    source: str = ""
    crowd: bool = False


@record
class Grounding:
    """Words of a caption and the regions they mean."""

    span: tuple[int, int]  # [start, end) code points of the caption
    regions: tuple[int, ...]  # places in Sample.regions


@record
class Caption:
    """Another text about the whole image, beside Sample.caption."""

    text: str
    groundings: tuple[Grounding, ...] = ()


@record
class Utterance:
    """Words of a spoken caption and when they were said."""

    text: str
    start_s: float
    end_s: float


@record
class TimedPoint:
    """Where a speaker pointed while saying a word."""

    word: str  # the utterance; empty between two of them
    x_unit: float  # 0..1 of the width; may leave it a little
    y_unit: float
    time_s: float


@record
class Turn:
    """One question and its answer."""

    question: str  # without a placeholder for the image: the trainer knows where its image tokens belong
    answer: str
    worded: str = ""  # the same question for who sees its places drawn into the image ("within the red rectangle")
    tests: tuple[str, ...] = ()  # what an answer shows that one can do, in a benchmark's words


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
    more_captions: tuple[Caption, ...] = ()
    utterances: tuple[Utterance, ...] = ()  # of a spoken caption: when what was said; points belong to them by time

    extensions: ClassVar[tuple[str, ...]] = ("jpg", "png")

    def __post_init__(self) -> None:
        """Refuses what does not fit the image or a caption, and what no file can hold."""
        if min(self.width_px, self.height_px) < 1:
            raise InputError(f"sample {self.key!r}: width_px and height_px must be above 0")
        for number, region in enumerate(self.regions):
            if problem := _region_problem(region, self):
                raise InputError(f"sample {self.key!r}: regions[{number}].{problem}")
        for number, caption in enumerate(self.more_captions):
            if problem := _caption_problem(caption, len(self.regions)):
                raise InputError(f"sample {self.key!r}: more_captions[{number}].{problem}")
        times = [time_s for said in self.utterances for time_s in (said.start_s, said.end_s)]
        places = [number for point in self.points for number in (point.x_unit, point.y_unit, point.time_s)]
        if not all(math.isfinite(number) for number in times + places):
            raise InputError(f"sample {self.key!r}: a point or a time of it is not a number")
        try:
            "".join(_texts(self)).encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"sample {self.key!r}: half a character in a text ({error.reason})") from None

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


def _caption_problem(caption: Caption, num_regions: int) -> str | None:
    for grounding in caption.groundings:
        start, end = grounding.span
        if not 0 <= start < end <= len(caption.text):
            return f"groundings: [{start}, {end}) is not inside its text of {len(caption.text)} characters"
        if not grounding.regions or not all(0 <= number < num_regions for number in grounding.regions):
            return f"groundings: regions {list(grounding.regions)}, but the image has {num_regions}"
    return None


def _texts(sample: Sample) -> Iterator[str]:
    yield sample.caption
    yield from (caption.text for caption in sample.more_captions)
    yield from (said.text for said in sample.utterances)
    yield from (point.word for point in sample.points)
    for region in sample.regions:
        yield from (region.phrase, *region.more_phrases, region.caption, region.source)
    for turn in sample.turns:
        yield from (turn.question, turn.answer, turn.worded, *turn.tests)


def _extension(key: str, image: bytes) -> str:
    if image.startswith(_JPEG):
        return "jpg"
    if image.startswith(_PNG):
        return "png"
    raise InputError(f"sample {key!r}: its image is neither a JPEG nor a PNG")


def _plain(sample: Sample) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "schema": SCHEMA,
        "width_px": sample.width_px,
        "height_px": sample.height_px,
        "caption": sample.caption,
        "regions": [_plain_region(region) for region in sample.regions],
        "points": [asdict(point) for point in sample.points],
        "turns": [_plain_turn(turn) for turn in sample.turns],
    }
    # written only where there are any: most data sets have none
    if sample.more_captions:
        plain["more_captions"] = [_plain_caption(caption) for caption in sample.more_captions]
    if sample.utterances:
        plain["utterances"] = [
            {"text": said.text, "start_s": float(said.start_s), "end_s": float(said.end_s)}
            for said in sample.utterances
        ]
    return plain


def _plain_turn(turn: Turn) -> dict[str, Any]:
    more: dict[str, Any] = {"worded": turn.worded, "tests": list(turn.tests)}
    return {"question": turn.question, "answer": turn.answer, **{key: value for key, value in more.items() if value}}


def _plain_caption(caption: Caption) -> dict[str, Any]:
    groundings = [{"span": list(one.span), "regions": list(one.regions)} for one in caption.groundings]
    return {"text": caption.text, "groundings": groundings}


def _plain_region(region: Region) -> dict[str, Any]:
    mask = region.mask
    size = None if mask is None else {"height_px": mask.height_px, "width_px": mask.width_px, "counts": mask.counts}
    plain: dict[str, Any] = {
        "box_xyxy_px": [float(edge) for edge in region.box_xyxy_px],
        "mask": size,
        "phrase": region.phrase,
        "caption": region.caption,
        "spans": [list(span) for span in region.spans],
        "score": float(region.score),
        "source": region.source,
        "crowd": region.crowd,
    }
    return plain | ({"more_phrases": list(region.more_phrases)} if region.more_phrases else {})


def _sample(key: str, image: bytes, plain: Any) -> Sample:
    where = f"sample {key!r}"
    fields = {"width_px": int, "height_px": int, "caption": str, "regions": list, "points": list, "turns": list}
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        given = plain.get("schema") if isinstance(plain, dict) else type(plain).__name__
        raise InputError(f"{where}: schema {given!r} is not known; this version reads schema {SCHEMA}")
    optional = {"more_captions": list, "utterances": list}
    spoken = {"text": str, "start_s": NUMBER, "end_s": NUMBER}
    values = checked({name: value for name, value in plain.items() if name != "schema"}, fields, where, optional)

    def each(name: str, read: Callable[[Any, str], T]) -> tuple[T, ...]:
        return tuple(read(one, f"{where}: {name}[{number}]") for number, one in enumerate(values.get(name, ())))

    return Sample(
        key=key, image=image, width_px=values["width_px"], height_px=values["height_px"], caption=values["caption"],
        regions=each("regions", _region), points=each("points", _point), turns=each("turns", _turn),
        utterances=each("utterances", lambda one, at: Utterance(**checked(one, spoken, at))),
        more_captions=each("more_captions", _caption),
    )  # fmt: skip


def _region(plain: Any, where: str) -> Region:
    fields = {
        "box_xyxy_px": list, "mask": (dict, type(None)), "phrase": str, "caption": str, "spans": list,
        "score": NUMBER, "source": str, "crowd": bool,
    }  # fmt: skip
    values = checked(plain, fields, where, {"more_phrases": list})
    x0, y0, x1, y1 = numbers(values["box_xyxy_px"], 4, f"{where}.box_xyxy_px")
    spans = [numbers(span, 2, f"{where}.spans") for span in values["spans"]]
    mask, phrases = values["mask"], values.get("more_phrases", [])
    if not all(isinstance(phrase, str) for phrase in phrases):
        raise InputError(f"{where}.more_phrases: {phrases!r:.60} given, texts are needed")
    if mask is not None:
        mask = Rle(**checked(mask, {"height_px": int, "width_px": int, "counts": str}, f"{where}.mask"))
    return Region(
        box_xyxy_px=(x0, y0, x1, y1), mask=mask, phrase=values["phrase"], caption=values["caption"],
        spans=tuple((int(start), int(end)) for start, end in spans), score=values["score"], source=values["source"],
        crowd=values["crowd"], more_phrases=tuple(phrases),
    )  # fmt: skip


def _point(plain: Any, where: str) -> TimedPoint:
    fields = {"word": str, "x_unit": NUMBER, "y_unit": NUMBER, "time_s": NUMBER}
    return TimedPoint(**checked(plain, fields, where))


def _turn(plain: Any, where: str) -> Turn:
    values = checked(plain, {"question": str, "answer": str}, where, {"worded": str, "tests": list})
    tests = values.get("tests", [])
    if not all(isinstance(one, str) for one in tests):
        raise InputError(f"{where}.tests: {tests!r:.60} given, texts are needed")
    return Turn(**{**values, "tests": tuple(tests)})


def _caption(plain: Any, where: str) -> Caption:
    values = checked(plain, {"text": str, "groundings": list}, where)
    groundings = []
    for one in values["groundings"]:
        grounding = checked(one, {"span": list, "regions": list}, f"{where}.groundings")
        start, end = numbers(grounding["span"], 2, f"{where}.groundings.span")
        regions = numbers(grounding["regions"], len(grounding["regions"]), f"{where}.groundings.regions")
        groundings.append(Grounding(span=(int(start), int(end)), regions=tuple(int(number) for number in regions)))
    return Caption(text=values["text"], groundings=tuple(groundings))
