"""RehearsalData: small tars of numbered samples. Imports nothing heavy."""

from collections.abc import Mapping
from typing import Any

from orchestrator.artifacts import Shards
from orchestrator.errors import Preempted
from orchestrator.records import record
from orchestrator.stage import Stage, StageContext

_ASK_EVERY = 64  # samples


class RehearsalData(Stage):
    """Writes numbered points of a hidden linear map; one set can go on where another ended."""

    @record
    class Config:
        """How many samples of what size; the recipe's seed decides which."""

        samples: int = 512
        features: int = 16
        targets: int = 4
        samples_per_shard: int = 64

        def __post_init__(self) -> None:
            """Refuses sets of nothing."""
            for name in ("samples", "features", "targets", "samples_per_shard"):
                if (value := getattr(self, name)) < 1:
                    raise ValueError(f"{name} must be 1 or more, not {value}")

    @record
    class Inputs:
        """The set whose numbers this one continues, if any."""

        before: Shards | None = None

    @record
    class Outputs:
        """Tars of JSON samples."""

        shards: Shards

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Writes the samples on the first rank; the others have nothing to do. Collective: every rank must call."""
        if not context.world.is_main:
            return {"shards": {}}
        from orchestrator.data.writer import ShardWriter
        from stages.rehearsal.points import HiddenMap, key_of, to_members

        config = self.config
        first = int(self.inputs.before.facts()["last"]) + 1 if self.inputs.before is not None else 0
        hidden = HiddenMap(context.seed, features=config.features, targets=config.targets)
        with ShardWriter(self.outputs.shards.path, samples_per_shard=config.samples_per_shard) as writer:
            for done, number in enumerate(range(first, first + config.samples)):
                if done % _ASK_EVERY == 0:
                    context.progress.advance(done, config.samples, "sample")
                    if context.stop():
                        raise Preempted(f"asked to stop after {done} of {config.samples} samples; they are made anew")
                writer.write(key_of(number), to_members(number, hidden.point(number)))
            facts = writer.close()
        said = {"source": "rehearsal", "licence": "made by orch: free of rights", "last": first + config.samples - 1}
        size = {"features": config.features, "targets": config.targets}
        return {"shards": {**facts, **said, **size, "sha256": writer.sha256}}
