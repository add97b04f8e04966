"""Images with one long text each, as the long-text retrieval benchmarks have them: Urban1k, DOCCI, ShareGPT4V."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from stages.convert.raw import Attempt, BrokenRecord, Found, Notes, RawPart

ALL = "all"  # the split that takes every record, whichever its data set counts it to
FIRST = 1000  # records: what PixCLIP's script takes of DOCCI, and what Long-CLIP holds out of ShareGPT4V


def read_urban1k(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample a name that a text or an image has, in the order of names; both are needed.

    The text is the whole file, as PixCLIP's script reads it; Long-CLIP's reads the first line.
    """
    texts = {path.stem: path for path in raw.files(0, ".txt")}
    names = sorted(texts.keys() | {path.stem for path in raw.files(1, ".jpg")})
    raw.about = len(names)
    for number, name in enumerate(names):
        build = partial(_of_urban1k, raw, number, name, texts.get(name))
        yield from notes.attempt(f"{raw.record(number, None)} {name}", build)


def read_docci(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample a line of the split; a line that does not say its split counts to every one.

    The split `all` is what PixCLIP's script takes: the first 1,000 lines, of whatever split.
    """
    lines = raw.lines(0) if raw.part.split != ALL else islice(raw.lines(0), FIRST)
    for number, line in enumerate(lines):
        if raw.part.split == ALL or _split_of(line) in {None, raw.part.split}:
            yield from notes.attempt(raw.record(number, None), partial(_of_docci, raw, number, line))


def read_sharegpt4v(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample a record: the first 1,000 are the test, as in Long-CLIP, the others are for training."""
    test = raw.part.split == "test"
    for number, plain in enumerate(islice(raw.list(0), FIRST if test else None)):
        if test:
            raw.about = min(raw.about, FIRST)
        if test or number >= FIRST:
            name = raw.record(number, plain, "id")
            yield from notes.attempt(name, partial(_of_sharegpt4v, raw, number, plain))


def _of_urban1k(raw: RawPart, number: int, name: str, text: Path | None) -> Found:
    if text is None:
        raise BrokenRecord("image has no text", name)
    picture = raw.picture(f"{name}.jpg")
    return picture.found(raw.key(number, name), caption=spoken(text.read_text(encoding="utf-8"), name))


def _of_docci(raw: RawPart, number: int, line: bytes) -> Found:
    plain = json.loads(line)
    picture = raw.picture(plain["image_file"])
    return picture.found(raw.key(number, picture.name), caption=spoken(plain["description"], picture.name))


def _split_of(line: bytes) -> Any:
    try:
        plain = json.loads(line)
    except (ValueError, RecursionError):
        return None
    split = plain.get("split") if isinstance(plain, dict) else None
    return split if isinstance(split, str) else None


def _of_sharegpt4v(raw: RawPart, number: int, plain: Any) -> Found:
    answer = plain["conversations"][1]
    if answer["from"] != "gpt":
        raise BrokenRecord("second turn is not the answer", f"it is by {answer['from']!r:.60}")
    picture = raw.picture(plain["image"])
    caption = spoken(answer["value"].replace("\n", " "), picture.name)
    return picture.found(raw.key(number, picture.name), caption=caption)


def spoken(text: str, name: str) -> str:
    """Returns a text without the space around it; refuses one that says nothing."""
    if not text.strip():
        raise BrokenRecord("caption is empty", name)
    return text.strip()
