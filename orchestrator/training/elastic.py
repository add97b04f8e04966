"""Reads tensors from torch.distributed.checkpoint files, on any number of ranks and in any engine; see `writing.py`.

A tensor is stored flat, or as blocks of columns (`blocks.py`), each flat; a rank writes and reads the run of elements
it holds. Shapes stand in `tensors.json`.
"""

import json
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from orchestrator.training.blocks import read_blocks
from orchestrator.training.optim import is_partitioned, whole_shape
from orchestrator.world import World

TENSORS = "tensors.json"
WEIGHTS = "weights"


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A run of elements of a flattened tensor: what one rank holds of it, as a live one-dimensional view."""

    name: str
    shape: tuple[int, ...]  # of the whole tensor
    start: int  # of `local` within the whole, flattened tensor
    local: Tensor
    replicated: bool = False  # True: every rank holds the whole
    frozen: bool = False  # True: the same in every save, so that it is written once
    copy: int = 0  # which one this is of `copies` equal ones on several ranks
    copies: int = 1
    blocks: int = 1  # the tensor is stored as so many equal blocks of its columns, one after the other

    def chunk(self) -> list[ChunkStorageMetadata]:
        """Says where the run lies; no chunk where this rank holds nothing."""
        if self.local.numel() == 0:
            return []
        return [ChunkStorageMetadata(torch.Size([self.start]), torch.Size([self.local.numel()]))]

    def entry(self) -> dict[str, Any]:
        """Returns what `tensors.json` says of the tensor."""
        entry: dict[str, Any] = {"shape": list(self.shape), "dtype": dtype_name(self.local.dtype)}
        return entry | ({"blocks": self.blocks} if self.blocks > 1 else {})


def whole(name: str, tensor: Tensor) -> Piece:
    """Makes the piece that is all of a contiguous tensor which every rank has, sharing its memory."""
    return Piece(name, tuple(tensor.shape), 0, tensor.detach().view(-1), replicated=True)


def held(name: str, parameter: Tensor) -> Piece:
    """Makes the piece of a parameter that this rank holds: all of it, or ZeRO-3's partition without its padding."""
    if not is_partitioned(parameter):
        return whole(name, parameter)
    partition: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]  # DeepSpeed hangs it on the parameter
    shape, numel = tuple(whole_shape(parameter)), prod(whole_shape(parameter))
    rank = torch.distributed.get_rank(parameter.ds_process_group)  # type: ignore[attr-defined]  # as above
    start = min(partition.numel() * rank, numel)
    return Piece(name, shape, start, partition.detach()[: numel - start])


def share(piece: Piece, world: World) -> Piece:
    """Cuts a piece that several ranks hold, so that each of them writes an equal run of it."""
    copy, copies = (world.rank, world.size) if piece.replicated else (piece.copy, piece.copies)
    length = -(-piece.local.numel() // copies)
    start = min(length * copy, piece.local.numel())
    local = piece.local[start : start + length]
    return replace(piece, start=piece.start + start, local=local, replicated=False, copy=0, copies=1)


def read(directory: Path, pieces: Iterable[Piece], *, reader: "Reader | None" = None) -> None:
    """Fills pieces in place from what any number of ranks wrote; each rank reads just what it holds, and on its own.

    A `reader` of the folder spares many reads the reading of its metadata.
    """
    named = {piece.name: piece for piece in pieces}
    reader = reader or Reader(directory)
    listed, stored = tensors(directory), reader.read_metadata().state_dict_metadata
    wrong = [problem for piece in named.values() if (problem := _problem(piece, listed, stored))]
    if wrong:
        raise DamagedArtifact(f"{directory} does not fit the model: {'; '.join(wrong[:5])}")
    stored_blocks = {name: listed[name].get("blocks", 1) for name in named}
    read_blocks(named.values(), stored_blocks, lambda some: _fill(some, reader))


def _fill(pieces: Iterable[Piece], reader: "Reader") -> None:
    named = {piece.name: piece for piece in pieces}
    try:
        with _alone_is_meant():
            planner = _LoadPieces(flatten_state_dict=False)
            load(cast("dict[str, Any]", named), storage_reader=reader, planner=planner, no_dist=True)
    except CheckpointException as error:
        raise DamagedArtifact(f"{reader.path} cannot be read: {_cause(error)}") from error


def tensors(directory: Path) -> dict[str, dict[str, Any]]:
    """Reads the list of stored tensors: name -> shape, dtype and, where they are several, blocks."""
    try:
        listed: dict[str, dict[str, Any]] = json.loads((directory / TENSORS).read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedArtifact(f"{directory} holds no tensors: {error}") from error
    return listed


_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


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
            items += create_read_items_for_chunk_list(name, entry, piece.chunk())
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
            *(("torch", name) for name in _DTYPES),
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


def _problem(piece: Piece, listed: Mapping[str, Mapping[str, Any]], stored: Mapping[str, Any]) -> str:
    entry = stored.get(piece.name)
    if piece.name not in listed or not isinstance(entry, TensorStorageMetadata):
        return f"{piece.name} is not stored"
    shape: Sequence[int] = listed[piece.name]["shape"]
    if tuple(shape) != piece.shape:
        return f"{piece.name} is stored as {tuple(shape)}, needed as {piece.shape}"
    return (
        "" if entry.size == torch.Size([prod(shape)]) else f"{piece.name} is stored with {entry.size.numel()} elements"
    )


@contextmanager
def _alone_is_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _cause(error: CheckpointException) -> BaseException:
    return next(wrapped[0] for wrapped in error.failures.values())


def dtype_name(dtype: torch.dtype) -> str:
    """Returns what `tensors.json` calls a type of tensor."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str, directory: Path) -> torch.dtype:
    """Returns the type of tensor that `tensors.json` of this folder calls so."""
    if name not in _DTYPES:
        raise DamagedArtifact(f"{directory / TENSORS}: {name!r} is no type of tensor; allowed: {', '.join(_DTYPES)}")
    return _DTYPES[name]
