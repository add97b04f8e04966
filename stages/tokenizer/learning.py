"""Learns a tokenizer from the texts of shards: captions, phrases of regions, questions and answers."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.data.reader import ShardSet
from stages.samples import Sample
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
    for name in sorted(shards):
        samples = ShardSet(shards[name])
        for number in range(min(len(samples), config.samples)):
            yield from (text for text in _texts_of(Sample.from_members(*samples.read(number))) if text)
        samples.close()


def _texts_of(sample: Sample) -> Iterator[str]:
    yield from (sample.caption, *(more.text for more in sample.more_captions))
    for region in sample.regions:
        yield from (region.phrase, *region.more_phrases, region.caption)
    for turn in sample.turns:
        yield from (turn.question, turn.answer)
