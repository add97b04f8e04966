"""What several stages take in and give out. Imports no torch."""

from collections.abc import Collection, Mapping
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


def task_faults(
    shards: Collection[str], tasks: Mapping[str, str], usual: str | None, known: Collection[str]
) -> dict[str, str]:
    """Finds tasks of no source, and sources without one or with a strange one; `usual` is taught unsaid."""
    found = {
        f"config.tasks.{name}": f"no such entry under inputs.shards; allowed: {', '.join(shards)}"
        for name in tasks
        if name not in shards
    }
    for name in shards:
        kind = tasks.get(name, usual)
        if kind is None:
            found[f"config.tasks.{name}"] = f"must say what this source teaches; allowed: {', '.join(known)}"
        elif kind not in known:
            found[f"config.tasks.{name}"] = f"unknown kind {kind!r}; allowed: {', '.join(known)}"
    return found
