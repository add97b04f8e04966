"""What the page may ask, and what it is told: JSON on both sides."""

import base64
import binascii
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.family import (
    Answers,
    DescribesDensely,
    DescribesRegions,
    Embeds,
    Grounds,
    LocatesWords,
    Model,
    Refers,
    RefersByBox,
    SegmentsPanoptic,
)
from stages.pictures import draw_panels
from stages.predict import Asked, answer_lines, ask, told
from stages.replies import BOX_TOKEN
from stages.vision import Box, check_box, decode_image

_OPTION = re.compile(r"--(prompt|box|refer|text|dense)\b")  # the page has no options


@record
class Kind:
    """One kind of question."""

    label: str
    needs: tuple[type[Any], ...]  # any of these abilities
    asked: Callable[[str, tuple[Box, ...]], Asked]  # text of the page and boxes on it -> what is asked
    text: str = ""  # what belongs into the text field; empty: nothing
    boxes: bool = False  # whether boxes say anything


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _prompted(text: str, boxes: tuple[Box, ...]) -> Asked:
    """Puts the boxes that a prompt does not speak of at its end."""
    missing = len(boxes) - text.count(BOX_TOKEN)
    return Asked(prompts=(" ".join([text.strip(), *[BOX_TOKEN] * missing]),), boxes=boxes)


def _filled(text: str, what: str) -> tuple[str, ...]:
    if lines := _lines(text):
        return lines
    raise InputError(f"write {what} into the field first")


def _drawn(boxes: tuple[Box, ...]) -> tuple[Box, ...]:
    if boxes:
        return boxes
    raise InputError("draw a box into the picture first")


KINDS: Mapping[str, Kind] = {
    "describe": Kind(
        label="Describe the picture", needs=(Grounds, LocatesWords, SegmentsPanoptic),
        asked=lambda _text, _boxes: Asked(),
    ),
    "boxes": Kind(
        label="Describe the boxes", needs=(DescribesRegions,), boxes=True,
        asked=lambda _text, boxes: Asked(boxes=_drawn(boxes)),
    ),
    "refer": Kind(
        label="Point at", needs=(Refers, RefersByBox), text="what to point at, one a line",
        asked=lambda text, _boxes: Asked(refer=_filled(text, "what to point at")),
    ),
    "ask": Kind(
        label="Ask", needs=(Answers,), text="a question; <bbox> in it stands for the next box", boxes=True,
        asked=lambda text, boxes: _prompted(" ".join(_filled(text, "a question")), boxes),
    ),
    "rank": Kind(
        label="Compare with texts", needs=(Embeds,), text="texts, one a line", boxes=True,
        asked=lambda text, boxes: Asked(texts=_filled(text, "a text"), boxes=boxes),
    ),
    "everything": Kind(
        label="Find everything", needs=(DescribesDensely,), asked=lambda _text, _boxes: Asked(dense=True)
    ),
}  # fmt: skip


def offered(model: Model) -> list[dict[str, Any]]:
    """Lists the questions that a model can answer, for the page."""
    return [
        {"name": name, "label": kind.label, "text": kind.text, "boxes": kind.boxes}
        for name, kind in KINDS.items()
        if isinstance(model, kind.needs)
    ]


def answer(model: Model, question: Mapping[str, Any]) -> dict[str, Any]:
    """Answers a question of the page: {"kind", "image" (base64), "text", "boxes" (xyxy in units of the picture)}.

    Returns {"lines", "picture" (a PNG in base64), "answer" (as `orch predict --json` has it)}; InputError says what is
    wrong with the question.
    """
    kind = KINDS.get(str(question.get("kind")))
    if kind is None:
        raise InputError(f"kind: {question.get('kind')!r} is unknown; allowed: {', '.join(KINDS)}")
    picture = _picture(question.get("image"))
    boxes = _boxes(question.get("boxes", []), picture) if kind.boxes else ()
    try:
        replies = ask(model, picture, kind.asked(str(question.get("text", "")), boxes))
    except InputError as error:
        raise InputError(_OPTION.sub(r"\1", str(error))) from None
    sheet = io.BytesIO()
    draw_panels(picture, [reply.panel for reply in replies]).save(sheet, "PNG")
    found = told(replies)
    return {
        "lines": list(answer_lines({**found, "output": None})),
        "picture": base64.b64encode(sheet.getvalue()).decode(),
        "answer": {"width_px": picture.width, "height_px": picture.height, **found},
    }


def _picture(encoded: object) -> Image.Image:
    if not isinstance(encoded, str) or not encoded:
        raise InputError("choose a picture first: a JPEG or PNG")
    try:
        data = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise InputError("the picture did not arrive whole") from None
    return decode_image(data)


def _boxes(given: object, picture: Image.Image) -> tuple[Box, ...]:
    """Measures boxes in whole pixels, as whoever drew them with a mouse meant."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InputError("boxes: a list of x0, y0, x1, y1 is needed")
    return tuple(_box(box, picture) for box in given)


def _box(given: object, picture: Image.Image) -> Box:
    numbers = [edge for edge in given if isinstance(edge, int | float)] if isinstance(given, Sequence) else []
    if len(numbers) != 4 or not all(0 <= edge <= 1 for edge in numbers):  # also false for nan
        raise InputError(f"boxes: {given!r} is no x0, y0, x1, y1 in units of the picture (0 to 1)")
    width, height = picture.size
    edges = [round(edge * side) for edge, side in zip(numbers, (width, height) * 2, strict=True)]
    return check_box(edges, width_px=width, height_px=height)
