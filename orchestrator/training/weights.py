"""The weights of a finished checkpoint: all of them in one process, or into a model that spans many."""

import logging
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from orchestrator.records import record
from orchestrator.training import elastic
from orchestrator.training.elastic import WEIGHTS
from orchestrator.training.holdings import saved_buffers

log = logging.getLogger(__name__)


@record
class LoadReport:
    """What came of filling a model from a checkpoint: names of the model, but `unexpected` as they are stored."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]  # in the model, not in the checkpoint: they keep the values they had
    unexpected: tuple[str, ...]  # in the checkpoint, not in the model

    def __str__(self) -> str:
        """Counts, and names a few."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        for word, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                parts.append(f"{len(names)} {word} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
        return ", ".join(parts)


def load_weights(checkpoint: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Reads weights of a checkpoint (an artifact, or `checkpoints/step_*`) into this process: all, or those named."""
    directory = checkpoint / WEIGHTS
    weights = {
        name: torch.empty(entry["shape"], dtype=elastic.dtype_named(entry["dtype"], directory))
        for name, entry in elastic.tensors(directory).items()
        if names is None or name in names
    }
    elastic.read(directory, [elastic.whole(name, tensor) for name, tensor in weights.items()])
    return weights


def load_into(module: nn.Module, checkpoint: Path, *, rename: Callable[[str], str] | None = None) -> LoadReport:
    """Fills a model from a checkpoint, also one that ZeRO-3 partitions: each rank reads only what it holds.

    `rename` says under which name a tensor of the model is stored. Meant for a model no engine drives yet, i.e. inside
    `TrainTask.load_weights`. Tensors that exist on one side only are reported, those of another shape are refused.
    """
    directory = checkpoint / WEIGHTS
    stored = elastic.tensors(directory)
    wanted = {name: rename(name) if rename else name for name, _ in _tensors(module)}
    pieces = [elastic.held(wanted[name], tensor) for name, tensor in _tensors(module) if wanted[name] in stored]
    elastic.read(directory, pieces)
    report = LoadReport(
        loaded=tuple(name for name, source in wanted.items() if source in stored),
        missing=tuple(name for name, source in wanted.items() if source not in stored),
        unexpected=tuple(sorted(set(stored) - set(wanted.values()))),
    )
    log.info("weights of %s: %s", checkpoint, report)
    return report


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *saved_buffers(module)]
