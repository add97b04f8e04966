"""Learns a tokenizer from the texts of shards: captions, phrases of regions, questions and answers."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.texts import texts_in
from stages.tokenizer.stage import LearnTokenizer
from stages.wordpieces import learn_pieces

REPEATS = 50  # of the config's texts, so that every word of them becomes one token


def learn(config: LearnTokenizer.Config, shards: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Writes the tokenizer; returns facts."""
    pieces = learn_pieces(_texts(config, shards), config.vocabulary_size, attached=config.attached)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pieces.files().items():
        (folder / name).write_bytes(content)
    return {"tokens": pieces.size, "inputs": sorted(shards)}


def _texts(config: LearnTokenizer.Config, shards: Mapping[str, Path]) -> Iterator[str]:
    yield from (text for text in config.texts for _ in range(REPEATS))
    yield from texts_in((shards[name] for name in sorted(shards)), most=config.samples)
