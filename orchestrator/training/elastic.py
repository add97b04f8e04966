"""Tensors in torch.distributed.checkpoint files, for any number of ranks and any engine: the pieces that a rank holds.

`writing.py` writes them, `reading.py` reads them.

A tensor is stored flat, or as blocks of columns (`blocks.py`), each flat; a rank writes and reads the run of elements
it holds. Shapes stand in `tensors.json`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orchestrator.errors import DamagedArtifact
from orchestrator.training.blocks import read_blocks
from orchestrator.training.optim import is_partitioned, whole_shape
from orchestrator.world import World

if TYPE_CHECKING:
    from orchestrator.training.reading import Reader

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
    from orchestrator.training.reading import Reader, fill, problem  # torch's checkpoints take half a second to import

    named = {piece.name: piece for piece in pieces}
    reader = reader or Reader(directory)
    listed, stored = tensors(directory), reader.read_metadata().state_dict_metadata
    wrong = [said for piece in named.values() if (said := problem(piece, listed, stored))]
    if wrong:
        raise DamagedArtifact(f"{directory} does not fit the model: {'; '.join(wrong[:5])}")
    stored_blocks = {name: listed[name].get("blocks", 1) for name in named}
    read_blocks(named.values(), stored_blocks, lambda some: fill(some, reader))


def tensors(directory: Path) -> dict[str, dict[str, Any]]:
    """Reads the list of stored tensors: name -> shape, dtype and, where they are several, blocks."""
    try:
        listed: dict[str, dict[str, Any]] = json.loads((directory / TENSORS).read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedArtifact(f"{directory} holds no tensors: {error}") from error
    return listed


DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


def dtype_name(dtype: torch.dtype) -> str:
    """Returns what `tensors.json` calls a type of tensor."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str, directory: Path) -> torch.dtype:
    """Returns the type of tensor that `tensors.json` of this folder calls so."""
    if name not in DTYPES:
        raise DamagedArtifact(f"{directory / TENSORS}: {name!r} is no type of tensor; allowed: {', '.join(DTYPES)}")
    return DTYPES[name]
