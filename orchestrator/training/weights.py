"""The weights of a finished checkpoint: one by one, all of them in one process, or into a model that spans many."""

import logging
from collections.abc import Callable, Collection
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from orchestrator.errors import DamagedArtifact
from orchestrator.records import record
from orchestrator.training import elastic
from orchestrator.training.elastic import WEIGHTS
from orchestrator.training.foreign.source import Entry
from orchestrator.training.holdings import saved_buffers

log = logging.getLogger(__name__)


@record
class LoadReport:
    """What came of filling a model: names of the model, but `unexpected` as they are stored."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]  # in the model, not stored: newly initialised, or with the values they had
    unexpected: tuple[str, ...]  # stored, and used by nothing in the model
    resized: tuple[str, ...] = ()  # loaded, with another number of rows than is stored

    def __str__(self) -> str:
        """Counts, and names a few."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        for word, names in (("resized", self.resized), ("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                parts.append(f"{len(names)} {word} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
        return ", ".join(parts)


class StoredWeights:
    """The weights of a checkpoint (an artifact, or `checkpoints/step_*`), read one at a time."""

    def __init__(self, checkpoint: Path) -> None:
        """Reads what there is, and where it lies."""
        from orchestrator.training.reading import Reader  # imported with it, torch's checkpoints take half a second

        self._directory = checkpoint / WEIGHTS
        self.label = str(self._directory)
        self._reader = Reader(self._directory)
        self.entries = {
            name: Entry(shape=tuple(entry["shape"]), dtype=elastic.dtype_named(entry["dtype"], self._directory))
            for name, entry in elastic.tensors(self._directory).items()
        }

    def read(self, name: str) -> Tensor:
        """Reads one tensor; while it does, a stored run of it is in memory twice."""
        if name not in self.entries:
            raise DamagedArtifact(f"{self.label} lacks {name}")
        tensor = torch.empty(self.entries[name].shape, dtype=self.entries[name].dtype)
        elastic.read(self._directory, [elastic.whole(name, tensor)], reader=self._reader)
        return tensor


def load_weights(checkpoint: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Reads weights of a checkpoint (an artifact, or `checkpoints/step_*`) into this process: all, or those named."""
    entries = StoredWeights(checkpoint).entries
    weights = {
        name: torch.empty(entry.shape, dtype=entry.dtype)
        for name, entry in entries.items()
        if names is None or name in names
    }
    elastic.read(checkpoint / WEIGHTS, [elastic.whole(name, tensor) for name, tensor in weights.items()])
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


def fill(parameter: Tensor, full: Tensor) -> None:
    """Writes a whole tensor into a parameter of which this rank may hold only a piece."""
    piece = elastic.held("", parameter)
    assert full.numel() == prod(piece.shape)  # noqa: S101 - whoever calls has compared the shapes
    with torch.no_grad():
        piece.local.copy_(full.reshape(-1)[piece.start : piece.start + piece.local.numel()])


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *saved_buffers(module)]
