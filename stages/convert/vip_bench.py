"""ViP-Bench: questions about marked places of pictures, each with its truth and with what it takes to answer it.

The bounding-box split as Pix2Cap's release asks it: `<obj>` in `vip-bench-meta-data.json` becomes "region1 <bbox>" with
the box of the shape that is labelled so, in the LabelMe file beside the plain picture.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from orchestrator.errors import InputError
from stages.convert.raw import Attempt, BrokenRecord, Found, Notes, Picture, RawPart, boxed
from stages.expressions import BOX
from stages.plain import numbers
from stages.samples import Region, Turn

_OBJECT = re.compile(r"<(obj(\d*))>")
_SHAPES = ("rectangle", "polygon")
_QUESTION = "v1_{}"  # how the records are named by the question ids of the other file


def read(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample a question: a single turn, and a region for each of its `<bbox>`, in their order."""
    questions = raw.object(0)
    raw.about = len(questions)
    worded = _worded(raw)
    for number, (name, plain) in enumerate(questions.items()):
        build = partial(_found, raw, notes, number, name, plain, worded.get(name, ""))
        yield from notes.attempt(raw.record(number, {"id": name}, "id"), build)


def _worded(raw: RawPart) -> Mapping[str, str]:
    """Reads the questions as they are asked of pictures with the places drawn in; a grader is shown these."""
    found = {}
    for number, line in raw.numbered_lines(1):
        try:
            plain = json.loads(line)
            found[_QUESTION.format(plain["question_id"])] = str(plain["text"])
        except (ValueError, KeyError, TypeError) as error:
            file = raw.root / raw.part.annotations[1]
            raise InputError(f"{file}:{number} is no question: {type(error).__name__}: {error}") from None
    return found


def _found(raw: RawPart, notes: Notes, number: int, name: str, plain: Any, worded: str) -> Found:
    asked, answer, source = (str(plain[key]).strip() for key in ("question", "answer", "image_source"))
    if not answer or BOX in asked:
        raise BrokenRecord("answer is empty" if not answer else f"question holds {BOX} itself", name)
    marked = json.loads(raw.beside(PurePosixPath(source).with_suffix(".json").as_posix()))
    picture = raw.picture(source, (marked["imageWidth"], marked["imageHeight"]))
    if not worded:
        notes.repair("question is not among those with words for places: a grader is shown the one without")
    regions = tuple(_region(marked["shapes"], found[1], picture, notes) for found in _OBJECT.finditer(asked))
    turn = Turn(
        question=_OBJECT.sub(lambda found: f"region{found[2] or 1} {BOX}", asked),
        answer=answer,
        worded=worded,
        tests=tuple(sorted({str(one) for one in plain["capability"]})),
    )
    return picture.found(raw.key(number, name), regions=regions, turns=(turn,))


def _region(shapes: Any, label: str, picture: Picture, notes: Notes) -> Region:
    """Boxes the first shape with a label, as the release does."""
    shape = next((one for one in shapes if one["label"] == label), None)
    if shape is None:
        raise BrokenRecord("no shape is labelled as the question says", f"{label} of {picture.name}")
    if shape["shape_type"] not in _SHAPES:
        raise BrokenRecord("shape is neither a rectangle nor a polygon", f"{label} of {picture.name}")
    across, down = zip(*(numbers(point, 2, f"points of {label}") for point in shape["points"]), strict=True)
    box = boxed((min(across), min(down), max(across), max(down)), picture, notes)
    return Region(box_xyxy_px=box, mask=None, phrase=label, source="vip_bench")
