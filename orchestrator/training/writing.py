"""Writes tensors in torch's checkpoint format without torch's collectives: each rank its own files, one rank the index.

A file holds the pieces of a rank one after the other, each as `torch.save` would write it alone. But for the numbers
themselves that is known beforehand, so a save reads them once, for the disk and for the checksum, and a thread that
writes needs the interpreter for a few calls only.
"""

import functools
import json
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from xxhash import xxh3_64

from orchestrator.artifacts import write_json
from orchestrator.errors import DamagedArtifact, SurroundingsError
from orchestrator.records import record
from orchestrator.training.elastic import TENSORS, Piece
from orchestrator.world import World

METADATA = ".metadata"
SHARES = "shares"  # folder of a draft: what each rank wrote
_FROZEN = "_1.distcp"
_BLOCK_BYTES = 1 << 22  # summed up and written while the processor still has it in its cache


class Run(NamedTuple):
    """A run of elements of a flattened tensor, and where its bytes lie in a file."""

    name: str
    start: int  # of the run within the whole, flattened tensor
    numel: int
    offset: int  # bytes
    length: int  # bytes


@record
class Written:
    """A file of one rank: what it holds, and the checksum of what it was meant to hold."""

    file: str  # within the folder of its index
    size_bytes: int
    xxh3: str
    runs: Sequence[Run]

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Written":
        """Makes it from what JSON made of it."""
        runs = [Run(*run) for run in plain["runs"]]
        return cls(file=plain["file"], size_bytes=plain["size_bytes"], xxh3=plain["xxh3"], runs=runs)

    def plain(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        return {"file": self.file, "size_bytes": self.size_bytes, "xxh3": self.xxh3, "runs": self.runs}


@record
class Share:
    """What one rank wrote of a checkpoint, and how long copying and writing took it."""

    files: Mapping[str, Sequence[Written]]  # by folder
    took_s: float


def write(directory: Path, pieces: Iterable[Piece], world: World) -> None:
    """Writes pieces that together cover each tensor exactly once, and their index. Collective: every rank must call."""
    mine, files = list(pieces), list[Written]()
    together(world, directory, lambda: directory.mkdir(parents=True, exist_ok=True), on_main=True)
    together(world, directory, lambda: files.append(write_file(directory, f"__{world.rank}_0.distcp", mine)))
    everything = [file for part in world.gather(files) for file in part]
    together(world, directory, lambda: write_index(directory, mine, everything), on_main=True)


def together(world: World, directory: Path, work: Callable[[], object], *, on_main: bool = False) -> None:
    """Works, on the first rank alone if `on_main`, and raises SurroundingsError on all ranks if it failed on any.

    Collective: every rank must call.
    """
    problem = None
    try:
        if world.is_main or not on_main:
            work()
    except (OSError, SurroundingsError) as error:
        problem = str(error)
    problems = [text for text in world.gather(problem) if text]
    if problems:  # on all ranks, or the others would wait for this one
        raise SurroundingsError(f"{directory}: {problems[0]}")


def write_share(draft: Path, rank: int, held: Mapping[str, Sequence[Piece]], began: float) -> None:
    """Writes the files of a rank, one for what is frozen, and last which they are. Raises OSError.

    `held` says which pieces go to which folder of the draft; `began` is when `time.perf_counter` started to count.
    """
    files = {
        folder: [write_file(draft / folder, name, some) for name, some in _by_file(rank, pieces) if some]
        for folder, pieces in held.items()
    }
    plain = {folder: [file.plain() for file in written] for folder, written in files.items()}
    text = json.dumps({"files": plain, "took_s": time.perf_counter() - began})
    _share_path(draft, rank).write_text(text, encoding="utf-8")


def _by_file(rank: int, pieces: Sequence[Piece]) -> list[tuple[str, list[Piece]]]:
    changing, frozen = [p for p in pieces if not p.frozen], [p for p in pieces if p.frozen]
    return [(f"__{rank}_0.distcp", changing), (f"__{rank}{_FROZEN}", frozen)]


def is_frozen(file: str) -> bool:
    """Tells whether a file holds frozen weights, by its name."""
    return file.endswith(_FROZEN)


def read_share(draft: Path, rank: int) -> Share:
    """Reads what a rank wrote. Raises OSError."""
    said = json.loads(_share_path(draft, rank).read_text(encoding="utf-8"))
    files = {folder: [Written.from_json(file) for file in found] for folder, found in said["files"].items()}
    return Share(files=files, took_s=said["took_s"])


def _share_path(draft: Path, rank: int) -> Path:
    return draft / SHARES / f"rank_{rank:05d}.json"


def write_file(directory: Path, file: str, pieces: Iterable[Piece]) -> Written:
    """Writes this rank's pieces as one file and waits until the disk has it. Raises OSError."""
    digest, runs, offset = xxh3_64(), list[Run](), 0
    with (directory / file).open("wb", buffering=1 << 16) as sink:  # larger blocks go past the buffer, uncopied
        for piece in pieces:
            numel = piece.local.numel()
            if not numel:
                continue
            before, after = _envelope(piece.local.dtype, numel)
            blocks: list[bytes | memoryview] = [before, *_blocks(piece.local), after]
            for block in blocks:
                digest.update(block)
                sink.write(block)
            length = len(before) + piece.local.nbytes + len(after)
            runs.append(Run(piece.name, piece.start, numel, offset, length))
            offset += length
        sink.flush()
        os.fsync(sink.fileno())
    return Written(file=file, size_bytes=offset, xxh3=digest.hexdigest(), runs=runs)


def write_index(directory: Path, pieces: Iterable[Piece], files: Iterable[Written]) -> None:
    """Writes what torch reads first, and the list of tensors. Raises OSError.

    `pieces` are one rank's, of which types and whole shapes count; `files` are all ranks'. Raises DamagedArtifact where
    they do not hold each element of each tensor exactly once.
    """
    from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo  # see reading.py
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        StorageMeta,
        TensorProperties,
        TensorStorageMetadata,
    )

    placed: dict[str, list[tuple[Run, str]]] = {}
    for file in files:
        for run in file.runs:
            placed.setdefault(run.name, []).append((run, file.file))
    metadata = Metadata({}, storage_data={}, storage_meta=StorageMeta(), version=CURRENT_DCP_VERSION)
    listed: dict[str, dict[str, Any]] = {}
    for piece in pieces:
        runs = sorted(placed.get(piece.name, []), key=lambda one: one[0].start)
        _refuse_gaps(piece, [run for run, _ in runs])
        listed[piece.name] = piece.entry()
        chunks = [ChunkStorageMetadata(torch.Size([run.start]), torch.Size([run.numel])) for run, _ in runs]
        metadata.state_dict_metadata[piece.name] = TensorStorageMetadata(
            TensorProperties(dtype=piece.local.dtype), torch.Size([prod(piece.shape)]), chunks
        )
        for run, name in runs:
            metadata.storage_data[MetadataIndex(run.name, [run.start])] = _StorageInfo(name, run.offset, run.length)
    write_json(directory / TENSORS, listed)
    with (directory / METADATA).open("wb") as sink:
        pickle.dump(metadata, sink)
        sink.flush()
        os.fsync(sink.fileno())


def _refuse_gaps(piece: Piece, runs: Sequence[Run]) -> None:
    at = 0
    for run in runs:
        if run.start != at:
            break
        at += run.numel
    if at != prod(piece.shape) or (runs and runs[-1].start + runs[-1].numel != at):
        raise DamagedArtifact(f"{piece.name} would not be stored whole: its elements from {at} on are not in order")


def _blocks(tensor: Tensor) -> Iterator[memoryview]:
    """Yields the bytes of a one-dimensional tensor, without a copy where it lies in host memory."""
    whole = tensor.detach().cpu().view(torch.uint8).numpy().data
    for start in range(0, len(whole), _BLOCK_BYTES):
        yield whole[start : start + _BLOCK_BYTES]


@functools.lru_cache(maxsize=1 << 16)
def _envelope(dtype: torch.dtype, numel: int) -> tuple[bytes, bytes]:
    """Returns what `torch.save` writes before and after the numbers of a one-dimensional tensor of a CPU."""
    sink = _Halves()
    with torch.serialization.skip_data():
        torch.save(torch.empty(numel, dtype=dtype), sink)  # type: ignore[arg-type]  # torch wants a whole IO[bytes]
    before, after = map(bytes, sink.halves)
    return before, after


class _Halves:
    """A file that keeps what is written before and after the gap that torch leaves for the numbers."""

    def __init__(self) -> None:
        self.halves = [bytearray()]

    def write(self, data: bytes) -> int:
        self.halves[-1] += data
        return len(data)

    def seek(self, _offset: int, _whence: int = os.SEEK_SET) -> None:
        self.halves.append(bytearray())

    def flush(self) -> None:
        """Has nothing to do."""
