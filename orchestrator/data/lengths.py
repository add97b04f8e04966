"""How long each sample of a source is, in whatever its stage measures: measured once, kept on disk.

Chunks of 65,536 samples are measured by any number of ranks, each written when it is done, so that a killed measuring
goes on where it was; then they become one file, `lengths.npy` (u32), mapped into memory, with `lengths.json` beside it.
A sample that cannot be measured because it is damaged has length 0: who plans by lengths leaves it out.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from orchestrator.artifacts import write_json
from orchestrator.errors import DamagedArtifact, DamagedSample, InputError, SurroundingsError
from orchestrator.records import record

log = logging.getLogger(__name__)

LengthOf = Callable[[str, Mapping[str, bytes]], int]  # key and members of a sample -> its length; 0 = of no use

_CHUNK = 65_536
_LONGEST = 2**32 - 1
_PATIENCE_S = 90
_DOCUMENT = "lengths.json"


class Samples(Protocol):
    """Samples by number, as `ShardSet` has them."""

    def __len__(self) -> int:
        """Counts the samples."""

    def read(self, number: int) -> tuple[str, dict[str, bytes]]:
        """Reads a sample: its key, and its members by extension."""


@record
class Lengths:
    """The lengths of a source's samples."""

    values: NDArray[np.uint32]  # by number; 0 = could not be measured
    digest: str  # sha256 of the values
    origin: str  # what was measured, and how: the same origin, the same lengths

    @classmethod
    def of(cls, values: NDArray[Any], origin: str = "given lengths") -> "Lengths":
        """Takes lengths from memory."""
        found = values.astype(np.uint32)
        return cls(values=found, digest=hashlib.sha256(found.astype("<u4").tobytes()).hexdigest(), origin=origin)

    @classmethod
    def load(cls, directory: Path, origin: str) -> "Lengths | None":
        """Opens what was measured in a folder; None if nothing was, or something else."""
        try:
            document = json.loads((directory / _DOCUMENT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if document["origin"] != origin:
            return None
        try:
            values = np.load(directory / "lengths.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DamagedArtifact(f"{directory / 'lengths.npy'} cannot be read: {error}") from error
        if values.dtype != np.uint32 or values.shape != (document["samples"],):
            raise DamagedArtifact(f"{directory / 'lengths.npy'} is not the file that {_DOCUMENT} describes")
        return cls(values=values, digest=document["digest"], origin=origin)


def measure_part(directory: Path, samples: Samples, length_of: LengthOf, origin: str, *, rank: int, size: int) -> None:
    """Measures a rank's chunks, but not those that are there; when all ranks have, one calls `join_parts`."""
    if Lengths.load(directory, origin) is not None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    for chunk in range(rank, -(-len(samples) // _CHUNK), size):
        path = _chunk_path(directory, origin, chunk)
        if not path.exists():
            numbers = range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(samples)))
            with NpyDraft(path, np.dtype(np.uint32)) as draft:
                draft.append(np.array([_length(samples, number, length_of) for number in numbers], np.uint32))


def join_parts(directory: Path, samples: int, origin: str) -> Lengths:
    """Joins the chunks that all ranks have measured, and opens the result; call it on one rank."""
    found = Lengths.load(directory, origin)
    if found is not None:
        return found
    directory.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    paths = [_chunk_path(directory, origin, chunk) for chunk in range(-(-samples // _CHUNK))]
    with NpyDraft(directory / "lengths.npy", np.dtype(np.uint32)) as draft:
        for path in paths:
            values = np.load(awaited(path))
            digest.update(values.astype("<u4").tobytes())
            draft.append(values)
    write_json(directory / _DOCUMENT, {"samples": samples, "digest": digest.hexdigest(), "origin": origin})
    for path in paths:
        path.unlink()
    joined = Lengths.load(directory, origin)
    assert joined is not None  # noqa: S101 - it was just written
    return joined


def awaited(path: Path) -> Path:
    """Waits for a file that another node has written: a network file system may show it only after a minute."""
    for _ in range(_PATIENCE_S):
        if path.exists():
            return path
        time.sleep(1)
    message = f"{path} was written by another process, but cannot be seen by this one"
    raise SurroundingsError(f"{message}: the run folder must lie on a disk that all nodes share")


def _length(samples: Samples, number: int, length_of: LengthOf) -> int:
    try:
        length = length_of(*samples.read(number))
    except (DamagedSample, InputError, SurroundingsError) as error:
        log.warning("cannot be measured, and is left out: %s", error)
        return 0
    if not 0 <= length <= _LONGEST:
        raise InputError(f"sample {number} has length {length}; allowed: 0 (of no use) to {_LONGEST}")
    return length


def _chunk_path(directory: Path, origin: str, chunk: int) -> Path:
    return directory / f"lengths-{hashlib.sha256(origin.encode()).hexdigest()[:12]}-{chunk:06d}.npy"


class NpyDraft:
    """A one-dimensional .npy that grows, and gets its name when it is whole."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        """Will write `path`."""
        self._path, self._dtype, self._length = path, dtype.newbyteorder("<"), 0
        self._draft = path.with_name(f".{path.name}.{os.getpid()}.draft")

    def append(self, values: NDArray[Any]) -> None:
        """Adds values at the end."""
        self._file.write(values.astype(self._dtype).tobytes())
        self._length += len(values)

    def __enter__(self) -> Self:
        """Begins the file."""
        self._file: BinaryIO = self._draft.open("wb")
        self._write_header()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Gives the file its name, or throws it away if something went wrong."""
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._write_header()  # numpy leaves room in it for any length
                self._file.flush()
                os.fsync(self._file.fileno())
        if kind is None:
            self._draft.replace(self._path)
        else:
            self._draft.unlink()

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, header)
