"""What several stages take in. Imports no torch."""

from orchestrator.artifacts import Checkpoint, Shards
from orchestrator.records import record


@record
class ModelAndSamples:
    """A model, and the samples that it is shown."""

    model: Checkpoint
    shards: Shards
