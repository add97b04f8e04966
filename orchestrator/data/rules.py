"""What a recipe may say about the order of its data: records only, no numpy.

Everything here changes which samples a step sees, so all of it is part of a stage's identity.
"""

from dataclasses import field
from typing import Literal

from orchestrator.records import record


@record
class ShuffleRule:
    """How the samples of a source are shuffled in each epoch."""

    mode: Literal["full", "blocks", "none"] = "full"  # full: for local disks; blocks: for stores that like long reads
    block: int = 1000  # blocks: neighbours that stay together; best the samples of a tar
    window: int = 64  # blocks: so many blocks are open at a time, and their samples mixed

    def __post_init__(self) -> None:
        """Refuses blocks and windows of nothing."""
        _require(self.block > 0, f"block must be 1 or more, not {self.block}")
        _require(self.window > 0, f"window must be 1 or more, not {self.window}")


@record
class PackRule:
    """Several samples share a place of the global batch, up to a common length."""

    budget: int  # the length of a place, in whatever the stage measures its samples in
    window: int = 8192  # neighbouring samples that may share a place
    too_long: Literal["leave_out", "alone"] = "leave_out"  # what becomes of samples longer than the budget

    def __post_init__(self) -> None:
        """Refuses what nothing fits in."""
        _require(self.budget > 0, f"budget must be 1 or more, not {self.budget}")
        _require(self.window > 0, f"window must be 1 or more, not {self.window}")


@record
class BucketRule:
    """Samples of near-equal length take neighbouring places, so that a micro-batch needs little padding."""

    size: int  # samples in a bucket; global_batch must be a multiple
    window: int = 8192  # neighbouring samples that are sorted by length

    def __post_init__(self) -> None:
        """Refuses buckets that a window cannot fill."""
        _require(self.size > 0, f"size must be 1 or more, not {self.size}")
        _require(self.window >= self.size, f"window must be at least size = {self.size}, not {self.window}")


@record
class OrderRules:
    """Everything that decides who sees what, beside seed, sizes, weights and global batch."""

    unit: Literal["step", "sample"] = "step"  # step: all samples of a step from one source; sample: sources mix in it
    temperature: float | None = None  # weights are size ** (1 / temperature); null = the mixture's, or equal
    max_epochs: dict[str, float] = field(default_factory=dict)  # source -> drawn so often, then no more
    shuffle: ShuffleRule = field(default_factory=ShuffleRule)
    pack: PackRule | None = None
    bucket: BucketRule | None = None

    def __post_init__(self) -> None:
        """Refuses rules that contradict each other."""
        _require(self.temperature is None or self.temperature > 0, "temperature must be above 0, or null")
        wrong = [name for name, epochs in self.max_epochs.items() if not epochs > 0]
        _require(not wrong, f"max_epochs must be above 0, which {', '.join(wrong)} is not")
        _require(self.pack is None or self.bucket is None, "pack and bucket exclude each other: give one of them")

    @property
    def units(self) -> PackRule | BucketRule | None:
        """Returns the rule by which samples are drawn together, if they are."""
        return self.pack or self.bucket


def _require(fine: bool, message: str) -> None:  # noqa: FBT001 - reads like assert, and is private
    if not fine:
        raise ValueError(message)
