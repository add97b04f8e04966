"""Every text in shards: captions, phrases and captions of regions, questions and answers."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from orchestrator.data.reader import ShardSet
from stages.samples import Sample


def texts_in(shards: Iterable[Path], *, most: int) -> Iterator[str]:
    """Yields the texts of the first `most` samples of each, as they stand there."""
    for path in shards:
        samples = ShardSet(path)
        for number in range(min(len(samples), most)):
            yield from filter(None, _texts_of(Sample.from_members(*samples.read(number))))
        samples.close()


def _texts_of(sample: Sample) -> Iterator[str]:
    yield from (sample.caption, *(more.text for more in sample.more_captions))
    for region in sample.regions:
        yield from (region.phrase, *region.more_phrases, region.caption)
    for turn in sample.turns:
        yield from (turn.question, turn.answer)
