"""What the micro-batches of a training stage of PixelLLM will be like before anything of them exists. No torch.

Nothing here decides what training computes: fingerprints leave this module out (`orchestrator.fingerprint.NEUTRAL`).
"""

from collections.abc import Collection

from orchestrator.records import record
from stages.pixelllm.kinds import DENSE, REFER, REGION, SEGMENT, idle_parts

OPENER = "stages.pixelllm.sitting:open_sitting"


@record
class BatchShape:
    """The most that each sample of a micro-batch brings, whatever its source."""

    rows: int
    context: int  # tokens of each row
    text: int  # the same
    speaks: bool  # the text is predicted
    masks: int  # to be drawn
    boxes: int  # to be proposed
    idle: tuple[str, ...] = ()  # parts of the model that are not run


@record
class Most:
    """How much of a sample a stage reads."""

    regions: int
    expressions: int
    context: int  # tokens
    text: int


def largest(kinds: Collection[str], most: Most) -> BatchShape:
    """Takes the most of all kinds of sources, every text as long as it may be: no batch is larger."""
    rows = {REFER: most.expressions, SEGMENT: most.expressions, REGION: most.regions, DENSE: most.regions}
    return BatchShape(
        rows=max((rows.get(kind, 1) for kind in kinds), default=1),
        context=most.context,
        text=most.text,
        speaks=not set(kinds) <= {REFER, SEGMENT},
        masks=most.expressions if SEGMENT in kinds else 0,
        boxes=most.regions if DENSE in kinds else 0,
        idle=tuple(sorted(idle_parts(kinds))),
    )
