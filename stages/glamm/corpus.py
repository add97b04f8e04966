"""Learns a small tokenizer from the texts of shards and from the prompts around them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from stages.glamm.prompts import (
    CAPTION_QUESTIONS,
    GCG_QUESTIONS,
    POINTED_REGION_QUESTIONS,
    REGION_QUESTIONS,
    clean,
    make_prompt,
)
from stages.glamm.tokenizer import train_vocabulary
from stages.texts import texts_in

PROMPT_REPEATS = 50  # so that every word of a prompt becomes one token
# More banks would take the room that a small vocabulary has for the words of the data; any question can be spelled.
QUESTIONS = (CAPTION_QUESTIONS, REGION_QUESTIONS, GCG_QUESTIONS, POINTED_REGION_QUESTIONS)


class _Wanted(Protocol):
    @property
    def vocabulary_size(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def wordings(self) -> int | None: ...


def learn_tokenizer(wanted: _Wanted, shards: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Writes a tokenizer in the layout of Hugging Face transformers; returns facts."""
    vocabulary = train_vocabulary(_texts(wanted, shards), wanted.vocabulary_size)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in vocabulary.files().items():
        (folder / name).write_bytes(content)
    return {"tokens": vocabulary.size, "inputs": sorted(shards)}


def _texts(wanted: _Wanted, shards: Mapping[str, Path]) -> Iterator[str]:
    for bank in QUESTIONS:
        for question in bank[: wanted.wordings]:
            yield from [make_prompt(question)] * PROMPT_REPEATS
    # answers follow a space: a word at their beginning is then the same token as within
    yield from (f" {clean(text)}" for text in texts_in(shards.values(), most=wanted.samples))
