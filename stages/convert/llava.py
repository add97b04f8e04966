"""LLaVA: alignment pairs (an image, a request, a caption) and instruction dialogues."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from stages.convert.raw import Attempt, BrokenRecord, Found, Notes, RawPart
from stages.samples import Turn

_PLACEHOLDER = "<image>"
_SPEAKERS = ("human", "gpt")


def read_alignment(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample a pair: the answer is also the caption."""
    for number, plain in enumerate(raw.list(0)):
        name = raw.record(number, plain, "id")
        yield from notes.attempt(name, partial(_found, raw, number, plain, answer_is_caption=True))


def read_instruct(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample a dialogue."""
    for number, plain in enumerate(raw.list(0)):
        name = raw.record(number, plain, "id")
        yield from notes.attempt(name, partial(_found, raw, number, plain, answer_is_caption=False))


def _found(raw: RawPart, number: int, plain: Any, *, answer_is_caption: bool) -> Found:
    turns = _turns(plain["conversations"])
    picture = raw.picture(plain["image"])
    return picture.found(
        raw.key(number, plain["image"]),
        caption=turns[0].answer if answer_is_caption else "",
        turns=turns,
    )


def _turns(said: Any) -> tuple[Turn, ...]:
    """Pairs what was said; the image placeholder is dropped, the trainer puts the image where its model wants it."""
    speakers = [message["from"] for message in said]
    if not said or speakers != list(_SPEAKERS) * (len(said) // 2):
        raise BrokenRecord("turns do not alternate human, gpt", f"{len(said)} messages by {speakers[:6]}")
    texts = [message["value"].replace(_PLACEHOLDER, "").strip() for message in said]
    turns = tuple(Turn(question=ask, answer=answer) for ask, answer in zip(texts[::2], texts[1::2], strict=True))
    if not all(turn.answer for turn in turns):
        raise BrokenRecord("an answer is empty", f"{len(turns)} turns")
    return turns
