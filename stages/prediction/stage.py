"""Predict: a checkpoint and shards in, shards with the model's words, boxes and masks out. Imports nothing heavy."""

from collections.abc import Mapping
from typing import Any

from orchestrator.artifacts import Checkpoint, Shards
from orchestrator.records import record
from orchestrator.stage import Stage, StageContext
from stages.abilities import asked_in_vain, asked_without_part

# what can be asked for -> what a model must be able to do: a protocol of stages/family.py
TASKS: Mapping[str, str] = {
    "caption": "Grounds",
    "regions": "DescribesRegions",
    "refer": "Refers",
    "refer_boxes": "RefersByBox",
    "dense": "DescribesDensely",
    "panoptic": "SegmentsPanoptic",
}


class Predict(Stage):
    """Lets a trained model speak about every image of shards, on every rank, each image once.

    task: caption (phrases with masks), regions (a caption for each box), refer and refer_boxes (a mask or a box for
    each phrase), dense (described boxes of everything), panoptic (described segments); what a model can be asked
    depends on its family.

    Finished tars are kept when an attempt dies, and what is written reads like any other shards: to be looked at,
    scored, or learnt from.
    """

    @record
    class Config:
        """What is asked, of how much data."""

        task: str = "caption"  # or regions, refer, refer_boxes, dense, panoptic
        limit: int | None = None  # samples of each input; null = all
        max_new_tokens: int = 256
        batch_size: int = 8  # images asked about at once
        samples_per_shard: int = 1000  # also what is lost, at most, of a rank's work when an attempt dies

        def __post_init__(self) -> None:
            """Checks names and ranges."""
            if self.task not in TASKS:
                raise ValueError(f"task: {self.task!r} is unknown; allowed: {', '.join(TASKS)}")
            for name in ("max_new_tokens", "batch_size", "samples_per_shard"):
                if (value := getattr(self, name)) < 1:
                    raise ValueError(f"{name} must be 1 or more, not {value}")
            if self.limit is not None and self.limit < 1:
                raise ValueError(f"limit must be 1 or more, or null for all, not {self.limit}")

    @record
    class Inputs:
        """The model, and the images."""

        model: Checkpoint
        shards: dict[str, Shards]

    @record
    class Outputs:
        """The same images with what the model says of them."""

        shards: Shards

    asks_family = True
    keeps_parts = True

    def faults(self) -> Mapping[str, str]:
        """Misses something to speak about."""
        return {} if self.inputs.shards else {"inputs.shards": "needs at least one set of shards"}

    def faults_with(self, family: str) -> Mapping[str, str]:
        """Tells a task that no model of this family can do."""
        return asked_in_vain(family, {"config.task": self.config.task}, TASKS)

    def faults_given(self, inputs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, str]:
        """Tells a task for which the model lacks a part that others of its family have."""
        return asked_without_part(inputs.get("model", {}), {"config.task": self.config.task}, TASKS)

    def code_roots(self) -> tuple[str, ...]:
        """Names the code that asks, which planning does not import."""
        return ("stages.prediction.work",)

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Asks about every image, and writes what is said. Collective: every rank must call."""
        from stages.prediction.work import predict_all

        return {"shards": predict_all(self.config, self.inputs, self.outputs.shards.path, context)}
