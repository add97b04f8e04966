"""Localized Narratives: what somebody said about an image, and where their mouse was meanwhile."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from stages.convert.raw import Attempt, BrokenRecord, Found, Notes, RawPart
from stages.samples import TimedPoint, Utterance

_COCO = "mscoco"  # how the dataset_id of COCO's narratives begins
_COCO_DIGITS = 12


def read(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample a narrative; an image can have several. Points keep their places outside of 0..1."""
    number = 0
    for index in range(len(raw.part.annotations)):
        for line in raw.lines(index):
            yield from notes.attempt(raw.record(number, None), partial(_found, raw, number, line))
            number += 1


def _found(raw: RawPart, number: int, line: bytes) -> Found:
    plain = json.loads(line)
    name = _file_name(str(plain["dataset_id"]), str(plain["image_id"]))
    picture = raw.picture(name)
    caption = plain["caption"].strip()
    if not caption:
        raise BrokenRecord("caption is empty", name)
    said = [
        Utterance(text=one["utterance"].strip(), start_s=float(one["start_time"]), end_s=float(one["end_time"]))
        for one in plain["timed_caption"]
    ]
    utterances = sorted(said, key=lambda one: one.start_s)
    return picture.found(
        raw.key(number, name),
        caption=caption,
        points=_points(plain["traces"], utterances),
        utterances=tuple(utterances),
    )


def _file_name(dataset: str, image_id: str) -> str:
    if not dataset.startswith(_COCO):
        return f"{image_id}.jpg"
    if not (image_id.isascii() and image_id.isdecimal()):
        raise BrokenRecord("image_id is not a number", repr(image_id)[:200])
    return f"{image_id.zfill(_COCO_DIGITS)}.jpg"


def _points(traces: Any, utterances: Sequence[Utterance]) -> tuple[TimedPoint, ...]:
    """Joins the pieces of the trace, in the order of time; each point has the words that were being said."""
    starts = [one.start_s for one in utterances]
    points = []
    for plain in sorted((point for trace in traces for point in trace), key=lambda point: float(point["t"])):
        time_s = float(plain["t"])
        at = bisect_right(starts, time_s) - 1
        spoken = at >= 0 and time_s <= utterances[at].end_s
        word = utterances[at].text if spoken else ""
        points.append(TimedPoint(word=word, x_unit=float(plain["x"]), y_unit=float(plain["y"]), time_s=time_s))
    return tuple(points)
