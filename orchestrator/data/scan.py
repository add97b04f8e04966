"""Walks a tar once from its beginning to its end: what files are in it, their checksums, and where it is broken.

Most headers of most tars are plain: a regular file with a short name. Those are taken a stretch at a time, their
checksums proven by numpy all at once; whatever is not plain is read one block at a time. The content passes through
memory once and is hashed while it is in the cache of the processor.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest

from orchestrator.data.headers import BLOCK, NAMES_NEXT, REGULAR, described, hold, names, parse
from orchestrator.data.places import Place

STRETCH_BYTES = 1 << 21  # at a time: more would not stay in the processor's cache
_KEPT_BYTES = 31 * 2**20  # glibc heeds blocks of less than 32 MiB
_ZEROS = bytes(BLOCK)
_FILES, _PAX = (b"0", b"\x00"), b"x"
_SIZE_AND_KIND = struct.Struct("124x11s21xc")  # of a header


class Files(NamedTuple):
    """Files that follow each other in a tar."""

    names: list[bytes]
    offsets: list[int]  # where the content of each begins
    sizes: list[int]
    checks: list[int]  # xxh3_64 of the content


class Gap(NamedTuple):
    """A place where the tar cannot be read: anything may be missing there."""

    offset: int
    reason: str


def scan(place: Place, stretch_bytes: int = STRETCH_BYTES) -> Iterator[Files | Gap]:
    """Yields the files of a tar in order, and a Gap wherever something may be lost; goes on behind each gap."""
    stretch = _Stretch(place, stretch_bytes)
    position = 0
    while position + BLOCK <= stretch.end:
        files, behind = _plain(stretch, position)
        if behind > position:
            yield files
            position = behind
            continue
        block = bytes(stretch.bytes_at(position, BLOCK))
        if block == _ZEROS and _only_zeros(stretch, position):
            return
        found, next_position = _careful(stretch, position)
        yield found
        if next_position is None:
            return
        position = next_position
    yield _no_end(position)


def keep_freed_memory() -> None:
    """Has the C library keep what a batch or a stretch gives back, up to twice this much, for the next one.

    It gives the end of its heap back to the system as soon as 128 kB are free there, until a larger block was once
    freed (mallopt(3), M_TRIM_THRESHOLD). Without, every batch pays for fresh pages: more than for reading them.
    """
    np.empty(_KEPT_BYTES, np.uint8)  # taken and given back, but never touched


class _Stretch:
    """The part of a tar that is in memory; moves forward."""

    def __init__(self, place: Place, size: int) -> None:
        self._place = place
        self.end = place.size()
        self.buffer = bytearray(size)
        self.view = memoryview(self.buffer)
        self.blocks = np.frombuffer(self.buffer, np.uint8).reshape(-1, BLOCK)
        self.start = 0  # in the tar
        self.filled = 0

    def move_to(self, position: int) -> None:
        """Begins at a position, and is full unless the tar ends before."""
        kept = self.start + self.filled - position
        if 0 < kept <= self.filled:
            self.buffer[:kept] = self.buffer[self.filled - kept : self.filled]  # a copy: the two may overlap
        else:
            kept = 0
        want = max(min(len(self.buffer), self.end - position), 0)
        more = self._place.fill(position + kept, self.view[kept:want]) if want > kept else 0
        self.start, self.filled = position, kept + more
        if self.filled < want:
            self.end = position + self.filled  # it has shrunk meanwhile

    def bytes_at(self, position: int, size: int) -> memoryview:
        """Returns at most a stretch of bytes from a position."""
        if not self.start <= position <= position + size <= self.start + self.filled:
            self.move_to(position)
        at = position - self.start
        return self.view[at : min(at + size, self.filled)]

    def check(self, position: int, size: int) -> int:
        """Hashes content of any size."""
        digest = xxh3_64()
        while size > 0 and (piece := self.bytes_at(position, min(size, len(self.buffer)))):
            digest.update(piece)
            position += len(piece)
            size -= len(piece)
        return digest.intdigest()


def _plain(stretch: _Stretch, position: int) -> tuple[Files, int]:
    """Takes the plain files from here to the end of a stretch, and returns where that ends."""
    stretch.move_to(position)
    buffer, view, filled, start = stretch.buffer, stretch.view, stretch.filled, stretch.start
    size_and_kind = _SIZE_AND_KIND.unpack_from
    heads: list[int] = []
    sizes: list[int] = []
    checks: list[int] = []
    passed: list[int] = []  # pax headers that say nothing of name or size
    at = 0
    while at + BLOCK <= filled:
        digits, kind = size_and_kind(buffer, at)
        try:
            size = int(digits, 8)  # a size in base 256 is none in base 8
        except ValueError:
            break
        content = at + BLOCK
        end = content + size
        if size < 0 or end > filled:
            break
        if kind in _FILES:
            heads.append(at)
            sizes.append(size)
            checks.append(xxh3_64_intdigest(view[content:end]))
        elif kind == _PAX and buffer.find(b"path=", content, end) < 0 and buffer.find(b"size=", content, end) < 0:
            passed.append(at)
        else:
            break
        at = content + (size + BLOCK - 1 & -BLOCK)
    rows = np.array(heads + passed, np.int64) // BLOCK
    blocks = stretch.blocks[rows]
    wrong = rows[~hold(blocks)] * BLOCK if len(rows) else rows
    if len(wrong):
        at = int(wrong.min())  # whatever comes behind it was found by its size, which may be a lie
        count = sum(head < at for head in heads)
        heads, sizes, checks = heads[:count], sizes[:count], checks[:count]
    offsets = [start + BLOCK + head for head in heads]
    return _without_folders(Files(names(blocks[: len(heads)]), offsets, sizes, checks)), start + at


def _without_folders(files: Files) -> Files:
    """Leaves out what old tars call a file but means a folder: its name ends in a slash."""
    if b"/\n" not in b"\n".join([*files.names, b""]):  # in one go: nearly always there is none
        return files
    kept = [row for row in zip(*files, strict=True) if not row[0].endswith(b"/")]
    return Files(*(list(column) for column in zip(*kept, strict=True))) if kept else Files([], [], [], [])


def _careful(stretch: _Stretch, position: int) -> tuple[Files | Gap, int | None]:
    """Reads one entry with all that may come before it, or says what is broken; then where to go on, if anywhere."""
    longer: dict[str, bytes] = {}
    while position + BLOCK <= stretch.end:
        block = bytes(stretch.bytes_at(position, BLOCK))
        header = parse(block)
        if header is None:
            reason = "zeroes where a header should be" if block == _ZEROS else "the header is damaged"
            return Gap(position, reason), _next_header(stretch, position + BLOCK)
        content, size, name = position + BLOCK, int(longer.get("size", header.size)), longer.get("path", header.name)
        if content + size > stretch.end:
            missing = content + size - stretch.end
            return Gap(position, f"the tar is cut inside {_shown(name)}: {missing} bytes are missing"), None
        position = content + (size + BLOCK - 1 & -BLOCK)
        if header.kind in NAMES_NEXT:
            longer |= described(header.kind, bytes(stretch.bytes_at(content, min(size, len(stretch.buffer)))))
            continue
        if header.kind in REGULAR and not name.endswith(b"/"):
            return Files([name], [content], [size], [stretch.check(content, size)]), position
        return Files([], [], [], []), position
    return _no_end(position), None


def _no_end(position: int) -> Gap:
    return Gap(position, "the tar is cut: its end-of-archive blocks are missing")


def _shown(name: bytes) -> str:
    return repr(name.decode("utf-8", "surrogateescape"))


def _next_header(stretch: _Stretch, position: int) -> int:
    """Finds the next block that is a whole ustar header; the end of the tar if there is none."""
    while position + BLOCK <= stretch.end:
        stretch.move_to(position)
        blocks = stretch.blocks[: stretch.filled // BLOCK]
        magic = (blocks[:, 257:262] == np.frombuffer(b"ustar", np.uint8)).all(axis=1)
        for row in np.flatnonzero(magic):
            if parse(blocks[row].tobytes()) is not None:
                return position + int(row) * BLOCK
        position += max(len(blocks), 1) * BLOCK
    return stretch.end


def _only_zeros(stretch: _Stretch, position: int) -> bool:
    while position < stretch.end:
        piece = stretch.bytes_at(position, min(len(stretch.buffer), stretch.end - position))
        if not piece or np.frombuffer(piece, np.uint8).any():
            return not piece
        position += len(piece)
    return True
