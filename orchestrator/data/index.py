"""Where each sample lies in its tar: the `.idx` beside it, built by walking through the tar, and what is damaged.

The file is little-endian. A header of 72 bytes: magic `ORCH-IDX`, version (u32), zero (u32), then as u64: bytes of the
tar, samples S, members M, bytes of the keys, of the extensions, of the damage; last the xxh3_64 of all other bytes of
the file. The body, without gaps:

    S + 1 rows of (u64, u64)            the number of each sample's first member; where its key begins in the keys
    M rows of (u64, u64, u64, u64)      where a member's content begins in the tar; its bytes; xxh3_64; extension
    keys (UTF-8), extensions (JSON list, numbered by the rows above), damage (JSON list of [key, reason])

The checksums find what has changed since the index was made, by accident; they are no defence against an attacker.
"""

import json
import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

from orchestrator.data.grouping import Damage, Samples, group
from orchestrator.data.places import LocalFile, Place
from orchestrator.data.scan import keep_freed_memory, scan
from orchestrator.errors import DamagedArtifact

SUFFIX = ".idx"
_MAGIC, _VERSION = b"ORCH-IDX", 2
_HEADER = struct.Struct("<8sIIQQQQQQQ")
_CHECK = struct.Struct("<Q")
_SAMPLE, _TWO_SAMPLES = struct.Struct("<QQ"), struct.Struct("<QQQQ")
_MEMBER = struct.Struct("<QQQQ")
_HEADER_BYTES, _SAMPLE_BYTES, _MEMBER_BYTES = _HEADER.size, _SAMPLE.size, _MEMBER.size
_two_samples, _members = _TWO_SAMPLES.unpack_from, _MEMBER.iter_unpack  # looked up once: they are asked every sample
_UNHARMED = b"[]"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


Row = tuple[int, int, int, int]  # of a member: offset, size, xxh3_64, number of its extension


class Member(NamedTuple):
    """Where one member of a sample lies."""

    extension: str
    offset: int
    size: int
    check: int  # xxh3_64


class TarIndex:
    """The samples of one tar."""

    def __init__(self, body: bytes, origin: str) -> None:
        """Reads an index in the form of the module's docstring; `origin` is named when it is damaged."""
        _, _, _, self.tar_bytes, samples, members, *texts, _ = _checked(body, origin)
        self.body = body
        self._samples: int = samples
        self._members_start = _HEADER.size + _SAMPLE.size * (samples + 1)
        self._keys_start = self._members_start + _MEMBER.size * members
        text = self._keys_start + texts[0]
        self.extensions = _extensions(body[text : text + texts[1]])
        damage = body[text + texts[1] :]
        self.damage = tuple(Damage(*found) for found in json.loads(damage)) if damage != _UNHARMED else ()
        rows = np.frombuffer(body, "<u8", members * 4, self._members_start)
        firsts = np.frombuffer(body, "<u8", (samples + 1) * 2, _HEADER.size)[::2]
        if (rows[3::4] >= len(self.extensions)).any() or (firsts[1:] <= firsts[:-1]).any() or firsts[-1] != members:
            raise DamagedArtifact(f"{origin} is damaged: its rows contradict each other")

    @classmethod
    def load(cls, path: Path) -> "TarIndex":
        """Reads an index file."""
        with LocalFile(path) as file:
            return cls(file.read(0, file.size()), str(path))

    def save(self, path: Path) -> None:
        """Writes the index by rename."""
        draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
        try:
            draft.write_bytes(self.body)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    def __len__(self) -> int:
        """Counts the samples."""
        return self._samples

    def sample(self, number: int) -> tuple[str, list[Row]]:
        """Returns the key of a sample, and where its members lie, in the order of the tar."""
        if not 0 <= number < self._samples:
            raise IndexError(f"sample {number} of {self._samples}")
        body, members, keys = self.body, self._members_start, self._keys_start
        begin, key, end, key_end = _two_samples(body, _HEADER_BYTES + number * _SAMPLE_BYTES)
        rows: list[Row] = [*_members(body[members + begin * _MEMBER_BYTES : members + end * _MEMBER_BYTES])]
        return body[keys + key : keys + key_end].decode("utf-8", "surrogateescape"), rows

    def key(self, number: int) -> str:
        """Returns the key of a sample."""
        return self.sample(number)[0]

    def keys(self) -> list[str]:
        """Lists the keys of all samples."""
        return [self.key(number) for number in range(self._samples)]

    def members(self, number: int) -> list[Member]:
        """Lists where the members of a sample lie, in the order of the tar, with their extensions."""
        return [Member(self.extensions[kind], *where) for *where, kind in self.sample(number)[1]]


def index_path(tar: Path) -> Path:
    """Returns where the index of a tar lies: beside it."""
    return tar.with_suffix(SUFFIX)


def count_samples(path: Path) -> int:
    """Reads only the number of samples from an index file."""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    return int(_head(head, str(path))[4])


def build_index(tar: Path, *, alike: bool = True) -> TarIndex:
    """Reads a tar of this machine once; otherwise as `index_of`."""
    with LocalFile(tar) as place:
        return index_of(place, str(tar), alike=alike)


def index_of(place: Place, name: str, *, alike: bool = True) -> TarIndex:
    """Reads a tar once and returns the index of its whole samples and the list of what is damaged.

    If its samples are `alike`, one that lacks a member which nearly all others have is damaged.
    """
    keep_freed_memory()
    size = place.size()
    start = place.read(0, 8)
    for magic, program in _COMPRESSED.items():
        if start.startswith(magic):
            raise DamagedArtifact(f"{name} is compressed with {program}: no sample can be found in it; unpack it first")
    samples = group(scan(place), alike=alike)
    if size == 0:
        samples = samples._replace(damage=[Damage("", "the tar is empty: zero bytes")])
    return TarIndex(_encode(size, samples), name)


def _encode(tar_bytes: int, samples: Samples) -> bytes:
    starts = np.cumsum([0, *map(len, samples.keys)], dtype="<u8")
    parts = [
        np.stack([samples.firsts.astype("<u8"), starts], axis=1).tobytes(),
        samples.members.astype("<u8").tobytes(),
        b"".join(samples.keys),
        json.dumps(samples.extensions).encode(),
        json.dumps(samples.damage).encode(),
    ]
    texts = [len(part) for part in parts[-3:]]
    head = _HEADER.pack(_MAGIC, _VERSION, 0, tar_bytes, len(samples.keys), len(samples.members), *texts, 0)
    body = b"".join([head, *parts])
    return _with_check(body)


@lru_cache(16)  # the tars of a set have the same
def _extensions(text: bytes) -> tuple[str, ...]:
    return tuple(json.loads(text))


def _with_check(body: bytes) -> bytes:
    at = _HEADER.size - _CHECK.size
    return body[:at] + _CHECK.pack(_check_of(body)) + body[_HEADER.size :]


def _check_of(body: bytes) -> int:
    view = memoryview(body)
    head = xxh3_64_intdigest(view[: _HEADER.size - _CHECK.size])
    return xxh3_64_intdigest(view[_HEADER.size :], seed=head)


def _head(head: bytes, origin: str) -> tuple[int, ...]:
    if len(head) < _HEADER.size or head[: len(_MAGIC)] != _MAGIC:
        raise DamagedArtifact(f"{origin} is no index of a tar")
    fields: tuple[int, ...] = _HEADER.unpack(head[: _HEADER.size])
    if fields[1] != _VERSION:
        raise DamagedArtifact(f"{origin} is an index of version {fields[1]}; this orch reads version {_VERSION}")
    return fields


def _checked(body: bytes, origin: str) -> tuple[int, ...]:
    fields = _head(body, origin)
    _, _, _, _, samples, members, keys, extensions, damage, check = fields
    wanted = _HEADER.size + _SAMPLE.size * (samples + 1) + _MEMBER.size * members + keys + extensions + damage
    if len(body) != wanted or _check_of(body) != check:
        raise DamagedArtifact(f"{origin} is damaged: its content does not match its own checksum")
    return fields
