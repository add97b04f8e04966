"""Reads the headers of a tar: one block at a time with all its exceptions, or all blocks of a stretch at once."""

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BLOCK = 512
REGULAR = frozenset(b"\x000" + b"7")  # NUL, '0' and '7': a file by POSIX and by the formats before it
NAMES_NEXT = frozenset(b"xgLK")  # pax and GNU headers that describe the entry after them
_PAX_RECORD = re.compile(rb"(\d{1,10}) ([^=]+)=")
_OCTAL_PLACES = (8 ** np.arange(5, -1, -1)).astype(np.uint32)

Blocks = npt.NDArray[np.uint8]  # one row of 512 a header


class Header(NamedTuple):
    """What the header of a file says."""

    name: bytes
    size: int
    kind: int


def parse(block: bytes) -> Header | None:
    """Reads one header block; None if its checksum does not hold, or if it is no whole block."""
    if len(block) != BLOCK:
        return None
    try:
        checksum = int(block[148:156].strip(b" \x00") or b"0", 8)
        size = _number(block[124:136])
    except ValueError:
        return None
    if sum(block) - sum(block[148:156]) + 8 * 0x20 != checksum or size < 0:
        return None
    return Header(_name(block), size, block[156])


def hold(blocks: Blocks) -> npt.NDArray[np.bool_]:
    """Tells which of many headers hold: their checksum, in its usual form or else in any, matches their bytes."""
    field = blocks[:, 148:156]
    sums = blocks.sum(axis=1, dtype=np.uint32) - field.sum(axis=1, dtype=np.uint32) + np.uint32(8 * 0x20)
    digits = field[:, :6] - np.uint8(ord("0"))  # wraps around below '0', so one comparison finds all that is no digit
    usual = (digits < 8).all(axis=1) & ((field[:, 6] == 0) | (field[:, 6] == ord(" ")))
    holds: npt.NDArray[np.bool_] = usual & (digits @ _OCTAL_PLACES == sums)
    for row in np.flatnonzero(~holds):
        holds[row] = parse(blocks[row].tobytes()) is not None
    return holds


def names(blocks: Blocks) -> list[bytes]:
    """Reads the names out of many headers."""
    found: list[bytes] = np.ascontiguousarray(blocks[:, :100]).view("S100").ravel().tolist()
    odd = blocks[:, 345] != 0  # a prefix, perhaps
    if b"\x00" in b"".join(found):
        odd |= np.array([b"\x00" in name for name in found])
    for row in np.flatnonzero(odd):
        found[row] = _name(blocks[row].tobytes())
    return found


def described(kind: int, content: bytes) -> dict[str, bytes]:
    """Reads what a pax or GNU header says of the next entry: its path and size."""
    if kind == ord("L"):
        return {"path": _text(content)}
    if kind != ord("x"):
        return {}
    found, position = {}, 0
    while match := _PAX_RECORD.match(content, position):
        end = position + int(match[1])
        if end <= match.end():
            break
        found[match[2].decode("utf-8", "replace")] = content[match.end() : end - 1]
        position = end
    return {key: value for key, value in found.items() if key == "path" or (key == "size" and value.isdigit())}


def _name(block: bytes) -> bytes:
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\x00" else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU: sizes over 8 GiB in base 256
        return int.from_bytes(field[1:])
    return int(field.strip(b" \x00") or b"0", 8)


def _text(field: bytes) -> bytes:
    return field.split(b"\x00", 1)[0]
