"""Slurm's short way of writing many hosts, `n[1-3,07],gpu[1-2]r[1-2]`, written out."""

import re
from collections.abc import Iterator

PART = re.compile(r"(?:[^,\[\]]|\[[^\]]*\])+")
RANGES = re.compile(r"\[([^\]]*)\]")


def expand(text: str) -> tuple[str, ...]:
    """Lists every host, in Slurm's order; nothing for what names none ("", "(null)", "None assigned")."""
    if text in {"", "(null)", "None assigned", "N/A"}:
        return ()
    return tuple(name for part in PART.findall(text) for name in _names(part))


def _names(part: str) -> Iterator[str]:
    found = RANGES.search(part)
    if found is None:
        yield part
        return
    for number in _numbers(found[1]):
        yield from _names(part[: found.start()] + number + part[found.end() :])


def _numbers(ranges: str) -> Iterator[str]:
    for piece in ranges.split(","):
        first, dash, last = piece.partition("-")
        if not dash:
            yield first
            continue
        for number in range(int(first), int(last) + 1):
            yield str(number).zfill(len(first))
