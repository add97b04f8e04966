"""Reads every byte of a set of shards and names each fault: the tar, the key, the reason."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.artifacts import file_sha256
from orchestrator.data.collection import Collection, Entry
from orchestrator.data.index import TarIndex
from orchestrator.data.reader import ShardReader
from orchestrator.errors import DamagedArtifact, DamagedSample, InputError
from orchestrator.records import record

Decode = Callable[[str, Mapping[str, bytes]], None]  # raises InputError; goes to other processes, so by its name
Advance = Callable[[int, int], None]
_DIGEST_BYTES = 8


class Fault(NamedTuple):
    """Something that is not as it was written."""

    tar: str
    key: str  # empty where the fault is the tar's
    reason: str


@record
class Verdict:
    """What reading everything has shown."""

    tars: int
    samples: int  # that were read whole
    bytes: int
    decoded: bool
    faults: tuple[Fault, ...]


def verify(collection: Collection, decode: Decode | None, *, processes: int, advance: Advance) -> Verdict:
    """Reads all tars, several at a time, and compares them with manifest and indexes; keys must be unique in the set.

    Memory: eight bytes a sample, for the keys.
    """
    if processes < 1:
        raise InputError(f"processes must be 1 or more, not {processes}")
    entries = collection.entries
    found: list[_Found] = []
    for one in _run(partial(_verify_tar, decode=decode), entries, processes):
        found.append(one)
        advance(len(found), len(entries))
    faults = [fault for one in found for fault in one.faults]
    faults += [Fault("", "", fault) for fault in collection.faults()]
    faults += _repeated_keys(collection, found)
    return Verdict(
        tars=len(entries),
        samples=sum(one.samples for one in found),
        bytes=sum(one.bytes for one in found),
        decoded=decode is not None,
        faults=tuple(faults),
    )


class _Found(NamedTuple):
    samples: int
    bytes: int
    keys: NDArray[np.uint64]  # digests of the keys, in the order of the tar
    faults: list[Fault]


def _run(work: Callable[[Entry], _Found], entries: Sequence[Entry], processes: int) -> Iterator[_Found]:
    if processes == 1 or len(entries) == 1:
        yield from map(work, entries)
        return
    # spawned, not forked: the caller draws a progress bar from a thread of its own
    with ProcessPoolExecutor(min(processes, len(entries)), get_context("spawn"), silence) as pool:
        yield from pool.map(work, entries)


def silence() -> None:
    """Keeps the reader from logging what the verdict will say."""
    logging.getLogger("orchestrator.data").setLevel(logging.CRITICAL)


def _verify_tar(entry: Entry, decode: Decode | None) -> _Found:
    """Reads one tar in every way that a reader might."""
    faults = [
        Fault(entry.name, "", f"{Path(path).name} has other content than its manifest says (sha256 differs)")
        for path, sha256 in entry.sha256.items()
        if Path(path).is_file() and file_sha256(Path(path)) != sha256
    ]
    try:
        walked = entry.walk()
        faults += _index_faults(entry, walked)
        reader = entry.open()
    except (DamagedArtifact, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return _Found(0, 0, np.zeros(0, np.uint64), [*faults, Fault(entry.name, "", str(reason))])
    try:
        whole, keys = _read_all(entry, reader, decode, faults)
    finally:
        reader.close()
    return _Found(whole, walked.tar_bytes, keys, faults)


def _read_all(
    entry: Entry, reader: ShardReader, decode: Decode | None, faults: list[Fault]
) -> tuple[int, NDArray[np.uint64]]:
    """Reads every sample that was promised; returns how many are whole, and the digests of all known keys."""
    index, whole = reader.index, 0
    keys = np.array([_digest(key) for key in index.keys()], np.uint64)  # noqa: SIM118  # an index is no mapping
    for number in range(len(index) if entry.promise.samples is None else entry.promise.samples):
        key = index.key(number) if number < len(index) else ""
        try:
            _, members = reader.read(number)
            if decode is not None:
                decode(key, members)
            whole += 1
        except DamagedSample as error:
            faults.append(Fault(entry.name, error.key, error.reason))
        except InputError as error:  # what the schema does not allow
            faults.append(Fault(entry.name, key, str(error).removeprefix(f"sample {key!r}").removeprefix(": ")))
    return whole, keys


def _index_faults(entry: Entry, walked: TarIndex) -> Iterator[Fault]:
    """Compares the index with what walking through the tar finds, and names the damage that either knows."""
    try:
        index = TarIndex.load(entry.index)
    except FileNotFoundError:
        index = walked  # the manifest's own complaint, where there is one
    except DamagedArtifact as error:
        yield Fault(entry.name, "", str(error))
        index = walked
    damage = dict.fromkeys([*index.damage, *walked.damage])
    yield from (Fault(entry.name, key, reason) for key, reason in damage)
    if walked.tar_bytes != index.tar_bytes:
        yield Fault(entry.name, "", f"it has {walked.tar_bytes} bytes, its index was made for {index.tar_bytes}")
    known = {*index.keys(), *(key for key, _ in damage)}
    for key in walked.keys():  # noqa: SIM118  # an index is no mapping
        if key not in known:
            yield Fault(entry.name, key, "is in the tar, but not in its index")


def _repeated_keys(collection: Collection, found: list[_Found]) -> Iterator[Fault]:
    """Names the keys that several samples of the set share, with all tars that hold them."""
    every = np.sort(np.concatenate([one.keys for one in found])) if found else np.zeros(0, np.uint64)
    repeated = np.unique(every[1:][every[1:] == every[:-1]])
    if not repeated.size:
        return
    places: dict[str, list[str]] = {}
    for entry, one in zip(collection.entries, found, strict=True):
        numbers = np.flatnonzero(np.isin(one.keys, repeated)).tolist()
        if not numbers:
            continue
        reader = entry.open()
        for number in numbers:
            places.setdefault(reader.index.key(number), []).append(entry.name)
        reader.close()
    for key, names in places.items():
        if len(names) > 1:
            where = ", ".join(dict.fromkeys(names))
            yield Fault(names[0], key, f"{len(names)} samples of the set have this key; they are in {where}")


def _digest(key: str) -> int:
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=_DIGEST_BYTES).digest())
