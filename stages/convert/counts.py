"""What was kept of a data set, in the words every converter reports in."""

from collections.abc import Iterable
from typing import Literal

from stages.convert.raw import Found
from stages.samples import Region

WORDS = ("images", "captions", "regions", "crowd", "expressions", "turns", "points")


class Counts:
    """Counts samples; `text` says which text of a region without spans is its expression."""

    def __init__(self, *, text: Literal["phrase", "caption"]) -> None:
        """Starts at nothing."""
        self._text = text
        self._counts = dict.fromkeys(WORDS, 0)
        self.pictures: set[str] = set()

    def add(self, found: Found) -> None:
        """Counts one sample. Regions that share their spans share one expression."""
        sample, counts = found.sample, self._counts
        self.pictures.add(found.picture)
        described = [region for region in sample.regions if not region.crowd]
        counts["captions"] += bool(sample.caption)
        counts["regions"] += len(described)
        counts["crowd"] += len(sample.regions) - len(described)
        counts["expressions"] += len({region.spans for region in described if region.spans})
        counts["expressions"] += sum(not region.spans and bool(self._expression(region)) for region in described)
        counts["turns"] += len(sample.turns)
        counts["points"] += len(sample.points)

    def plain(self) -> dict[str, int]:
        """Returns the counts; `images` are different pictures with something kept."""
        return self._counts | {"images": len(self.pictures)}

    def _expression(self, region: Region) -> str:
        return region.phrase if self._text == "phrase" else region.caption


def total(counts: Iterable[Counts]) -> dict[str, int]:
    """Adds up parts; a picture that several parts speak about counts once."""
    several = list(counts)
    plain = [count.plain() for count in several]
    pictures = set[str]().union(*(count.pictures for count in several))
    return {word: sum(one[word] for one in plain) for word in WORDS} | {"images": len(pictures)}
