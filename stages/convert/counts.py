"""What was kept of a data set, in the words every converter reports in."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np

from stages.convert.parts import ExpressionText
from stages.convert.raw import Found
from stages.samples import Sample

WORDS = ("images", "captions", "regions", "crowd", "expressions", "turns", "points")

_PICTURE_BYTES = 8  # of a picture's digest: ten million pictures count one too few once in 400,000 data sets


class Counts:
    """Counts samples."""

    def __init__(self) -> None:
        """Starts at nothing."""
        self._counts = dict.fromkeys(WORDS, 0)
        self._pictures: list[bytes] = []

    def add(self, found: Found, text: ExpressionText) -> None:
        """Counts one sample; `text` says which of its texts are expressions."""
        sample, counts = found.sample, self._counts
        self._pictures.append(hashlib.blake2b(found.picture.encode(), digest_size=_PICTURE_BYTES).digest())
        crowd = sum(region.crowd for region in sample.regions)
        counts["captions"] += bool(sample.caption) + len(sample.more_captions)
        counts["regions"] += len(sample.regions) - crowd
        counts["crowd"] += crowd
        counts["expressions"] += _expressions(sample, text)
        counts["turns"] += len(sample.turns)
        counts["points"] += len(sample.points)

    def plain(self) -> dict[str, int]:
        """Returns the counts; `images` are different pictures with something kept."""
        return self._counts | {"images": int(self._different().size)}

    def packed(self) -> dict[str, Any]:
        """Returns plain data that `unpacked` makes the counts of again."""
        return {"counts": self._counts, "pictures": self._different().tobytes().hex()}

    @classmethod
    def unpacked(cls, packed: Mapping[str, Any]) -> Self:
        """Undoes `packed`."""
        counts = cls()
        counts._counts |= {word: int(packed["counts"][word]) for word in WORDS}
        counts._pictures = [bytes.fromhex(packed["pictures"])]
        return counts

    @classmethod
    def total(cls, several: Iterable[Self]) -> Self:
        """Adds up counts; a picture that several speak about counts once."""
        joined = cls()
        for one in several:
            for word in WORDS:
                joined._counts[word] += one._counts[word]  # noqa: SLF001 - its own class
            joined._pictures += one._pictures  # noqa: SLF001 - its own class
        return joined

    def _different(self) -> Any:
        return np.unique(np.frombuffer(b"".join(self._pictures), dtype=f"<u{_PICTURE_BYTES}"))


def _expressions(sample: Sample, text: ExpressionText) -> int:
    """Counts the texts that mean regions. Regions that share their spans share one expression."""
    described = [region for region in sample.regions if not region.crowd]
    placed = len({region.spans for region in described if region.spans})
    further = sum(len(region.more_phrases) for region in described)
    if text == "none":
        return 0
    if text == "more_phrases":
        return further
    if text == "grounding":
        places = {span for region in described for span in region.spans}
        return len(places) + sum(len(caption.groundings) for caption in sample.more_captions)
    if text == "caption":
        return placed + sum(not region.spans and bool(region.caption) for region in described)
    return placed + further + sum(not region.spans and bool(region.phrase) for region in described)
