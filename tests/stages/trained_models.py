"""What a training stage leaves behind, written without any training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from orchestrator.artifacts import Checkpoint
from orchestrator.training import elastic, writing
from orchestrator.training.elastic import WEIGHTS
from orchestrator.training.holdings import saved_buffers
from orchestrator.world import World


def write_trained(
    directory: Path, model: nn.Module, description: Mapping[str, Any], files: Mapping[str, bytes], *, step: int = 5
) -> Checkpoint:
    """Writes a checkpoint: weights and buffers, files beside them by their path, and what its manifest says."""
    pieces = [elastic.whole(name, p) for name, p in (*model.named_parameters(), *saved_buffers(model))]
    writing.write(directory / WEIGHTS, pieces, World.alone())
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    checkpoint = Checkpoint(directory)
    tensors = elastic.tensors(directory / WEIGHTS)
    checkpoint.commit("f" * 64, facts={**description, "tensors": tensors, "step": step})
    return checkpoint


def write_model(
    directory: Path, family: str, model: Any, tokenizer: Mapping[str, bytes], *, step: int = 5
) -> Checkpoint:
    """Writes a checkpoint of a model that knows its blueprint, its tokenizer beside it."""
    description = {"family": family, "model": model.blueprint.to_plain()}
    return write_trained(directory, model, description, {f"tokenizer/{k}": v for k, v in tokenizer.items()}, step=step)
