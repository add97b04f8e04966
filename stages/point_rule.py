"""At how many points masks are compared instead of at every pixel, and how these are chosen. Imports no torch."""

from orchestrator.records import record


@record
class PointRule:
    """Mask2Former's numbers (arXiv 2112.01527, section 4.1), who took the way from PointRend (arXiv 1912.08193)."""

    count: int = 12_544  # of each mask: 112 x 112
    oversample: float = 3.0  # so many times `count` are drawn evenly, to choose the least sure ones from
    importance: float = 0.75  # share of `count` that is chosen so; the rest is drawn evenly once more

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.count < 1:
            raise ValueError(f"count must be 1 or more, not {self.count}")
        if self.oversample < 1:
            raise ValueError(f"oversample must be 1 or more, not {self.oversample}")
        if not 0 <= self.importance <= 1:
            raise ValueError(f"importance must lie in [0, 1], not {self.importance}")

    @property
    def drawn(self) -> int:
        """Counts the points that the least sure ones are chosen from."""
        return int(self.count * self.oversample)

    @property
    def unsure(self) -> int:
        """Counts the points that are chosen because a guess is least sure there."""
        return int(self.count * self.importance)
