"""Order, index and worker processes together: the batches of a step, resumable from one integer."""

from collections.abc import Mapping

from orchestrator.records import record


@record
class Drawn:
    """One sample as it was drawn for a step."""

    source: str  # the name of the input it came from: equal for all samples of a step, on all ranks
    key: str
    members: Mapping[str, bytes]  # extension -> content
    seed: int  # for augmentation and choice of wording: a function of (seed, source, epoch, index), never of the rank
