"""Walks the headers of a tar: where each file lies, and where the tar is broken."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 512
_ZEROS = bytes(BLOCK)
_REGULAR = frozenset(b"\x000" + b"7")  # NUL, '0' and '7': a file by POSIX and by the formats before it
_NAMES_NEXT = frozenset(b"xgLK")  # pax and GNU headers that describe the entry after them
_PAX_RECORD = re.compile(rb"(\d+) ([^=]+)=")


class Entry(NamedTuple):
    """A file inside a tar."""

    name: str
    start: int  # where its first header begins
    offset: int  # where its content begins
    size: int


class Gap(NamedTuple):
    """A place where the tar cannot be read: anything may be missing there."""

    offset: int
    reason: str


class _Header(NamedTuple):
    name: str
    size: int
    kind: int


def walk(tar: memoryview) -> Iterator[Entry | Gap]:
    """Yields the files of a tar in order, and a Gap wherever something may be lost; goes on behind each gap."""
    position = start = 0
    longer: dict[str, str] = {}
    while position + BLOCK <= len(tar):
        block = bytes(tar[position : position + BLOCK])
        if block == _ZEROS and not _any_byte(tar[position:]):
            return
        header = _parse(block)
        if header is None:
            yield Gap(position, "zeroes where a header should be" if block == _ZEROS else "the header is damaged")
            position = start = _next_header(tar, position + BLOCK)
            longer = {}
            continue
        content, size = position + BLOCK, int(longer.get("size", header.size))
        name = longer.get("path", header.name)
        if content + size > len(tar):
            yield Gap(position, f"the tar is cut inside {name!r}: {content + size - len(tar)} bytes are missing")
            return
        position = content + -(-size // BLOCK) * BLOCK
        if header.kind in _NAMES_NEXT:
            longer |= _described(header, bytes(tar[content : content + size]))
            continue
        if header.kind in _REGULAR and not name.endswith("/"):
            yield Entry(name, start, content, size)
        start, longer = position, {}
    yield Gap(position, "the tar is cut: its end-of-archive blocks are missing")


def _parse(block: bytes) -> _Header | None:
    """Reads one header block; None if its checksum does not hold."""
    try:
        checksum = int(block[148:156].strip(b" \x00") or b"0", 8)
        size = _number(block[124:136])
    except ValueError:
        return None
    # without its zeroes, which are most of a header, it adds up in a quarter of the time
    if sum(block.translate(None, b"\x00")) - sum(block[148:156]) + 8 * 0x20 != checksum:
        return None
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\x00" else ""
    return _Header(f"{prefix}/{name}" if prefix else name, size, block[156])


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU: sizes over 8 GiB in base 256
        return int.from_bytes(field[1:])
    return int(field.strip(b" \x00") or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\x00", 1)[0].decode("utf-8", "surrogateescape")


def _described(header: _Header, content: bytes) -> dict[str, str]:
    """Reads what a pax or GNU header says of the next entry: its path and size."""
    if header.kind == ord("L"):
        return {"path": _text(content)}
    if header.kind != ord("x"):
        return {}
    found, position = {}, 0
    while match := _PAX_RECORD.match(content, position):
        end = position + int(match[1])
        found[match[2].decode("utf-8", "replace")] = content[match.end() : end - 1].decode("utf-8", "surrogateescape")
        if end <= match.end():
            break
        position = end
    return {key: value for key, value in found.items() if key == "path" or (key == "size" and value.isdigit())}


def _next_header(tar: memoryview, position: int) -> int:
    """Finds the next block that is a whole ustar header; the end of the tar if there is none."""
    while position + BLOCK <= len(tar):
        block = bytes(tar[position : position + BLOCK])
        if block[257:262] == b"ustar" and _parse(block) is not None:
            return position
        position += BLOCK
    return len(tar)


def _any_byte(rest: memoryview) -> bool:
    return bool(np.frombuffer(rest, dtype=np.uint8).any())
