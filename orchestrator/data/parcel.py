"""Carries a value with tensors in it to another process: in one anonymous file, gone when nobody holds it any more.

A receiver may map the file, so that nothing is copied there, and tell when the map is gone. The sender may then write
into the file again: its pages are there already, and to get new ones takes longer than to fill them.

The file has no name (`memfd_create`), so a process that is killed leaves nothing in /dev/shm, and the size of /dev/shm
is no limit. One descriptor a parcel, however many tensors. The file: the number of pieces and the size of each (u64),
then the pieces, each at a multiple of 64 bytes: a pickle of the value without its tensors, and the bytes of each one.
"""

import io
import mmap
import os
import pickle
import struct
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch._utils import _validate_loaded_sparse_tensors

_ALIGNMENT = 64  # of a piece: more than the size of any element, as a view of another type requires


def pack(value: Any, into: int | None = None) -> int:
    """Writes a value into an anonymous file and returns its descriptor, which the caller closes.

    The file is a new one, or that of an earlier parcel, which must be received and gone.
    """
    tensors: list[Tensor] = []
    head = io.BytesIO()
    _Pickler(head, tensors).dump(value)
    pieces = [head.getbuffer(), *(_bytes_of(tensor).numpy().data for tensor in tensors)]
    sizes = [len(piece) for piece in pieces]
    parcel = os.memfd_create("orch-parcel") if into is None else into
    try:
        with open(parcel, "wb", closefd=False) as file:
            file.seek(0)
            file.write(struct.pack(f"<{1 + len(sizes)}Q", len(sizes), *sizes))
            *starts, end = _starts(sizes)
            for start, piece in zip(starts, pieces, strict=True):
                file.seek(start)
                file.write(piece)
            file.truncate(end)
    except BaseException:
        if into is None:
            os.close(parcel)
        raise
    return parcel


def unpack(parcel: int, *, pinned: bool, when_gone: Callable[[], object] | None = None) -> Any:
    """Takes a value out, its tensors views of one block of memory, and closes the descriptor. Once for each parcel.

    The block is the parcel itself if `when_gone` is given, to be called as soon as the last tensor is gone; the file
    stays open until then. Otherwise it is a copy, and always if pinned: one that a GPU copies from while the program
    goes on.
    """
    with open(parcel, "rb", buffering=0) as file:
        if pinned or when_gone is None:
            block = _copied(file, os.fstat(parcel).st_size, pinned=pinned)
            if when_gone is not None:
                when_gone()
        else:
            block = _lent(parcel, when_gone)
    content = block.numpy().data
    (count,) = struct.unpack_from("<Q", content)
    sizes = struct.unpack_from(f"<{count}Q", content, 8)
    # views by torch, not through their addresses: only so does its allocator know when a GPU is done with the block
    *starts, _ = _starts(sizes)
    pieces = [block[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    value = _Unpickler(io.BytesIO(pieces[0].numpy().data), pieces[1:]).load()
    # until then torch keeps every sparse tensor that was ever unpickled
    _validate_loaded_sparse_tensors()  # type: ignore[no-untyped-call]  # torch has no type for it
    return value


def _lent(parcel: int, when_gone: Callable[[], object]) -> Tensor:
    """Maps a parcel: shared, as a private mapping would copy every page that is changed. Its tensors keep the map."""
    memory = mmap.mmap(parcel, 0)
    weakref.finalize(memory, when_gone).atexit = False
    return torch.frombuffer(memory, dtype=torch.uint8)


def _copied(file: io.FileIO, size: int, *, pinned: bool) -> Tensor:
    block = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    content, filled = block.numpy().data, 0
    file.seek(0)
    while filled < size and (some := file.readinto(content[filled:])):
        filled += some
    return block


class _Pickler(pickle.Pickler):
    """Leaves tensors out of the pickle, to travel beside it."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._tensors = tensors
        self._places: dict[int, int] = {}

    def persistent_id(self, part: Any) -> tuple[int, torch.dtype, tuple[int, ...]] | None:
        # anything more than plain numbers is left to the class itself
        if type(part) is not Tensor or part.layout is not torch.strided or not _plain(part):
            return None
        if id(part) not in self._places:
            self._places[id(part)] = len(self._tensors)
            self._tensors.append(part)  # and is alive until the end, so that its id stays its own
        return self._places[id(part)], part.dtype, tuple(part.shape)


class _Unpickler(pickle.Unpickler):
    """Puts tensors back where they were."""

    def __init__(self, file: io.BytesIO, pieces: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._pieces = pieces
        self._found: dict[int, Tensor] = {}

    def persistent_load(self, said: tuple[int, torch.dtype, tuple[int, ...]]) -> Tensor:
        place, dtype, shape = said
        if place not in self._found:
            self._found[place] = self._pieces[place].view(dtype).view(shape)
        return self._found[place]


def _plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not (tensor.requires_grad or tensor.is_quantized)


def _bytes_of(tensor: Tensor) -> Tensor:
    plain = tensor.resolve_conj().resolve_neg().contiguous().flatten()
    # torch calls a single element contiguous whatever its stride, which `view` does not take
    return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8)


def _starts(sizes: Sequence[int]) -> Iterator[int]:
    """Yields where each piece begins, and where the next one would."""
    head = 8 * (1 + len(sizes))
    return accumulate((_aligned(size) for size in sizes), initial=_aligned(head))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
