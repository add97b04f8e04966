"""What several stages take in and give out. Imports no torch."""

from typing import Protocol

from orchestrator.artifacts import Checkpoint, Shards, Tokenizer
from orchestrator.records import record


@record
class ModelAndSamples:
    """A model, and the samples that it is shown."""

    model: Checkpoint
    shards: Shards


@record
class TrainingInputs:
    """What is learnt from; a model that has begun, or a tokenizer where the model that begins here brings none."""

    shards: dict[str, Shards]
    tokenizer: Tokenizer | None = None
    model: Checkpoint | None = None


@record
class TrainedModel:
    """The model, and the tokenizer beside its weights if it has one."""

    model: Checkpoint


class Begun(Protocol):
    """What a model that begins is made of, as a recipe says it under config.model."""

    def faults(self) -> dict[str, str]:
        """Names what is not there or does not fit: key below config.model -> message."""


def beginning_faults(model: Begun | None, tokenizer: Tokenizer | None, checkpoint: Checkpoint | None) -> dict[str, str]:
    """Finds no model to begin with or two, what the one lacks, and a tokenizer beside a checkpoint's own."""
    if (model is None) == (checkpoint is None):
        given = "neither given" if model is None else "both given"
        return {"config.model": f"exactly one of config.model and inputs.model is needed, {given}"}
    if model is None:
        return {} if tokenizer is None else {"inputs.tokenizer": "inputs.model brings its own; remove one of the two"}
    return {f"config.model.{key}": text for key, text in model.faults().items()}
