"""Reads torch.distributed.checkpoint files, piece by piece and without trusting them.

Only who loads a checkpoint imports this: what torch imports for it takes longer than many a step.
"""

import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load

from orchestrator.errors import DamagedArtifact
from orchestrator.training.elastic import DTYPES, Piece


class _LoadPieces(DefaultLoadPlanner):
    """Plans the reading of pieces: whatever stored runs overlap with the one this rank wants."""

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,  # noqa: FBT001, FBT002 - torch's signature
    ) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None  # noqa: S101 - torch has set it up
        stored = self.metadata.state_dict_metadata
        items = []
        for name, piece in self.state_dict.items():
            entry = stored[name]
            assert isinstance(entry, TensorStorageMetadata)  # noqa: S101 - the reader admits nothing else
            items += create_read_items_for_chunk_list(name, entry, _chunk(piece))
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        local: Tensor = self.state_dict[index.fqn].local
        return local


class Reader(FileSystemReader):
    """Reads torch's checkpoint files without trusting them: their metadata is a pickle, so few types may appear."""

    _known: Metadata | None = None

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Reads the metadata, once."""
        if self._known is None:
            self._known = self._read_metadata(Path(self.path))
        return self._known

    @staticmethod
    def _read_metadata(path: Path) -> Metadata:
        try:
            with (path / ".metadata").open("rb") as file:
                metadata = _MetadataUnpickler(file).load()
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise DamagedArtifact(f"{path}/.metadata cannot be read: {error}") from error
        strays = [info.relative_path for info in metadata.storage_data.values() if "/" in info.relative_path]
        if not isinstance(metadata, Metadata) or strays:
            raise DamagedArtifact(f"{path}/.metadata names files outside its folder: {strays[:3]}")
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickles the handful of types that describe a checkpoint; anything else is refused."""

    allowed = frozenset(
        {
            ("torch", "Size"),
            ("torch.serialization", "_get_layout"),
            *(("torch", name) for name in DTYPES),
            *(
                ("torch.distributed.checkpoint.metadata", name)
                for name in (
                    "BytesStorageMetadata",
                    "ChunkStorageMetadata",
                    "Metadata",
                    "MetadataIndex",
                    "StorageMeta",
                    "TensorProperties",
                    "TensorStorageMetadata",
                    "_MEM_FORMAT_ENCODING",
                )
            ),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("pathlib", "PosixPath"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in the metadata of a checkpoint")
        return super().find_class(module, name)


def fill(pieces: Iterable[Piece], reader: Reader) -> None:
    """Reads what each piece wants, over all stored runs that overlap with it. Raises DamagedArtifact."""
    named = {piece.name: piece for piece in pieces}
    try:
        with _alone_is_meant():
            planner = _LoadPieces(flatten_state_dict=False)
            load(cast("dict[str, Any]", named), storage_reader=reader, planner=planner, no_dist=True)
    except CheckpointException as error:
        raise DamagedArtifact(f"{reader.path} cannot be read: {_cause(error)}") from error


def problem(piece: Piece, listed: Mapping[str, Mapping[str, Any]], stored: Mapping[str, Any]) -> str:
    """Says why a piece cannot be read from what is listed and stored; nothing if it can."""
    entry = stored.get(piece.name)
    if piece.name not in listed or not isinstance(entry, TensorStorageMetadata):
        return f"{piece.name} is not stored"
    shape: Sequence[int] = listed[piece.name]["shape"]
    if tuple(shape) != piece.shape:
        return f"{piece.name} is stored as {tuple(shape)}, needed as {piece.shape}"
    return (
        "" if entry.size == torch.Size([prod(shape)]) else f"{piece.name} is stored with {entry.size.numel()} elements"
    )


def _chunk(piece: Piece) -> list[ChunkStorageMetadata]:
    """Says where the run lies; no chunk where this rank holds nothing."""
    if piece.local.numel() == 0:
        return []
    return [ChunkStorageMetadata(torch.Size([piece.start]), torch.Size([piece.local.numel()]))]


@contextmanager
def _alone_is_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _cause(error: CheckpointException) -> BaseException:
    return next(wrapped[0] for wrapped in error.failures.values())
