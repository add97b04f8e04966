"""Where each sample lies in its tar: the `.idx` beside it, built by walking the headers, and what is damaged.

The file is little-endian. A header of 64 bytes: magic `ORCH-IDX`, version (u32), crc32 of the body (u32), then as u64:
bytes of the tar, samples S, members M, bytes of the keys, of the extensions, of the damage. The body, without gaps:

    S + 1 rows of (u64, u64)          the number of each sample's first member; where its key begins in the keys
    M rows of (u64, u64, u32, u32)    where a member's content begins in the tar; its bytes; its crc32; its extension
    keys (UTF-8), extensions (JSON list, numbered by the rows above), damage (JSON list of [key, reason])

A sample is a run of files with one key, as webdataset groups them. A sample that may be half of one, or two merged,
is not in the index but in its damage: next to a broken header or the cut end of a tar, a sample counts as whole only
if it has the same extensions as every sample that is beyond doubt.
"""

import json
import mmap
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.data.headers import Entry, Gap, walk
from orchestrator.errors import DamagedArtifact

SUFFIX = ".idx"
_MAGIC, _VERSION = b"ORCH-IDX", 1
_HEADER = struct.Struct("<8sIIQQQQQQ")
_SAMPLE, _TWO_SAMPLES = struct.Struct("<QQ"), struct.Struct("<QQQQ")
_MEMBER = struct.Struct("<QQII")
_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)  # as webdataset splits names
_META = re.compile(r"__[^/]*__($|/)")  # as webdataset skips them


class Damage(NamedTuple):
    """A loss: what is missing from a tar, and why."""

    key: str  # empty where even the key is lost
    reason: str


class Member(NamedTuple):
    """Where one member of a sample lies."""

    extension: str
    offset: int
    size: int
    check: int  # crc32


class TarIndex:
    """The samples of one tar."""

    def __init__(self, body: bytes | mmap.mmap, origin: Path) -> None:
        """Reads an index in the form of the module's docstring; `origin` is named when it is damaged."""
        self.tar_bytes, samples, members, *texts = _checked(body, origin)
        self._body = body
        self._samples: int = samples
        self._members_start = _HEADER.size + _SAMPLE.size * (samples + 1)
        self._keys_start = self._members_start + _MEMBER.size * members
        text = self._keys_start + texts[0]
        self._extensions: list[str] = json.loads(body[text : text + texts[1]])
        self.damage = tuple(Damage(*found) for found in json.loads(body[text + texts[1] :]))

    @classmethod
    def load(cls, path: Path) -> "TarIndex":
        """Maps an index file into memory."""
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < _HEADER.size:
                raise DamagedArtifact(f"{path} is no index of a tar: it is too short")
            return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path)

    def save(self, path: Path) -> None:
        """Writes the index by rename."""
        draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
        try:
            draft.write_bytes(self._body)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    def __len__(self) -> int:
        """Counts the samples."""
        return self._samples

    def key(self, number: int) -> str:
        """Returns the key of a sample."""
        _, begin, _, end = self._bounds(number)
        return self._body[self._keys_start + begin : self._keys_start + end].decode("utf-8", "surrogateescape")

    def members(self, number: int) -> list[Member]:
        """Lists where the members of a sample lie, in the order of the tar."""
        begin, _, end, _ = self._bounds(number)
        rows = self._body[self._members_start + begin * _MEMBER.size : self._members_start + end * _MEMBER.size]
        extensions = self._extensions
        return [
            Member(extensions[kind], offset, size, check) for offset, size, check, kind in _MEMBER.iter_unpack(rows)
        ]

    def _bounds(self, number: int) -> tuple[int, int, int, int]:
        """Returns the row of a sample and of the one after it: first member, key start, and both again."""
        if not 0 <= number < self._samples:
            raise IndexError(f"sample {number} of {self._samples}")
        bounds: tuple[int, int, int, int] = _TWO_SAMPLES.unpack_from(self._body, _HEADER.size + number * _SAMPLE.size)
        return bounds


def index_path(tar: Path) -> Path:
    """Returns where the index of a tar lies: beside it."""
    return tar.with_suffix(SUFFIX)


def count_samples(path: Path) -> int:
    """Reads only the number of samples from an index file."""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    return _head(head, path)[1]


def build_index(tar: Path) -> TarIndex:
    """Walks a tar once and returns the index of its whole samples and the list of what is damaged."""
    with tar.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return TarIndex(_encode(memoryview(b""), [], [Damage("", "the tar is empty: zero bytes")]), tar)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as content:
            samples, damage = _whole(list(_group(content)))
            return TarIndex(_encode(content, samples, damage), tar)


class _Group:
    """A run of files with one key."""

    __slots__ = ("doubt", "entries", "key")

    def __init__(self, key: str, *, doubt: str) -> None:
        self.key = key
        self.doubt = doubt  # why it may not be whole; empty if it is
        self.entries: dict[str, Entry] = {}


def _group(content: memoryview) -> Iterator[_Group | Damage]:
    """Joins neighbouring files of one key, never across a gap."""
    group: _Group | None = None
    doubt = ""
    for found in walk(content):
        if isinstance(found, Gap):
            doubt = f"{found.reason} (byte {found.offset})"
            yield Damage("", doubt)
            if group is not None:
                group.doubt = doubt
                yield group
            group = None
            continue
        match = None if _META.match(found.name) else _KEY_AND_EXTENSION.fullmatch(found.name)
        if match is None:
            continue
        key, extension = match[1], match[2].lower()
        if group is None or group.key != key:
            if group is not None:
                yield group
            group, doubt = _Group(key, doubt=doubt), ""
        if extension in group.entries:
            group.doubt = f"member {extension!r} is there twice"
        group.entries[extension] = found
    if group is not None:
        yield group


def _whole(found: Sequence[_Group | Damage]) -> tuple[list[_Group], list[Damage]]:
    """Keeps the groups that are whole samples beyond doubt, and names the rest."""
    damage = [item for item in found if isinstance(item, Damage)]
    groups = [item for item in found if isinstance(item, _Group)]
    times = Counter(group.key for group in groups)
    sure = {frozenset(group.entries) for group in groups if not group.doubt and times[group.key] == 1}
    kept = []
    for group in groups:
        if times[group.key] > 1:
            damage.append(Damage(group.key, f"the key appears {times[group.key]} times: members may be mixed up"))
        elif group.doubt and ("twice" in group.doubt or sure != {frozenset(group.entries)}):
            damage.append(Damage(group.key, f"may be half a sample ({', '.join(group.entries)}): {group.doubt}"))
        else:
            kept.append(group)
    return kept, damage


def _encode(content: memoryview, samples: Sequence[_Group], damage: Sequence[Damage]) -> bytes:
    entries = [(extension, entry) for group in samples for extension, entry in group.entries.items()]
    extensions = sorted({extension for extension, _ in entries})
    number = {extension: i for i, extension in enumerate(extensions)}
    keys = [group.key.encode("utf-8", "surrogateescape") for group in samples]
    firsts = accumulate((len(group.entries) for group in samples), initial=0)
    key_starts = accumulate((len(key) for key in keys), initial=0)
    parts = [
        b"".join(_SAMPLE.pack(*row) for row in zip(firsts, key_starts, strict=True)),
        b"".join(
            _MEMBER.pack(at, size, zlib.crc32(content[at : at + size]), number[extension])
            for extension, (_, _, at, size) in entries
        ),
        b"".join(keys),
        json.dumps(extensions).encode(),
        json.dumps(damage).encode(),
    ]
    texts = [len(part) for part in parts[-3:]]
    body = b"".join(parts)
    head = (_MAGIC, _VERSION, zlib.crc32(body), len(content), len(samples), len(entries), *texts)
    return _HEADER.pack(*head) + body


def _head(head: bytes, origin: Path) -> tuple[int, ...]:
    """Reads a header: crc32 of the body, then the counts."""
    if len(head) < _HEADER.size or head[: len(_MAGIC)] != _MAGIC:
        raise DamagedArtifact(f"{origin} is no index of a tar")
    _, version, *numbers = _HEADER.unpack(head)
    if version != _VERSION:
        raise DamagedArtifact(f"{origin} is an index of version {version}; this orch reads version {_VERSION}")
    check, tar_bytes, *counts = numbers
    return (tar_bytes, *counts, check)


def _checked(body: bytes | mmap.mmap, origin: Path) -> tuple[Any, ...]:
    tar_bytes, samples, members, keys, extensions, damage, check = _head(body[: _HEADER.size], origin)
    wanted = _HEADER.size + _SAMPLE.size * (samples + 1) + _MEMBER.size * members + keys + extensions + damage
    with memoryview(body) as view, view[_HEADER.size :] as rest:
        if len(body) != wanted or zlib.crc32(rest) != check:
            raise DamagedArtifact(f"{origin} is damaged: its content does not match its own checksum")
    return tar_bytes, samples, members, keys, extensions, damage
