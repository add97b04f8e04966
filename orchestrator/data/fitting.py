"""Finds the index by which a tar can be read, also where tar, index and manifest do not agree.

Of the three the manifest is believed. An index that is as the manifest promises is the truth about every sample: of a
tar that was cut, damaged or replaced, whatever still has its checksum is kept, wherever it lies now, and nothing else.
An index that is missing, damaged or of another tar is made again in memory.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from orchestrator.data.grouping import Damage
from orchestrator.data.headers import BLOCK, parse
from orchestrator.data.index import Row, TarIndex, index_of
from orchestrator.data.listing import Promise
from orchestrator.data.places import Place
from orchestrator.errors import DamagedArtifact

log = logging.getLogger(__name__)

_NAME_BYTES = 100  # in a header; longer names are elsewhere
Fitted = tuple[TarIndex, Mapping[int, list[Row]]]  # an index, and the samples that lie elsewhere than it says


def load_index(path: Path) -> TarIndex | None:
    """Reads an index file; None, and a word in the log, if it is missing or damaged."""
    try:
        return TarIndex.load(path)
    except FileNotFoundError:
        log.warning("%s is missing", path)
    except (DamagedArtifact, OSError) as error:
        log.warning("an index cannot be used: %s", error)
    return None


def fit(place: Place, name: str, loaded: TarIndex | None, promise: Promise) -> Fitted:
    """Returns the index for a tar: the one that was loaded, or one made now by reading the tar once."""
    size = place.size()
    as_promised = loaded is not None and (
        promise.samples in (None, len(loaded)) and promise.tar_bytes in (None, loaded.tar_bytes)
    )
    if loaded is not None and as_promised and loaded.tar_bytes == size:
        return loaded, {}
    log.warning("%s and its index do not belong together: reading through the tar", name)
    found = index_of(place, name, alike=promise.alike)
    if loaded is not None and as_promised:
        return loaded, _moved(loaded, found)
    if promise.tar_bytes not in (None, size) and not found.damage:
        raise DamagedArtifact(f"the tar was replaced: {size} bytes and whole, its manifest says {promise.tar_bytes}")
    if promise.samples not in (None, len(found)):
        log.warning("%s has %d whole samples of %s%s", name, len(found), promise.samples, shown(found.damage))
    return found, {}


def of_another_tar(place: Place, index: TarIndex, number: int, member: int) -> bool:
    """Tells whether the header before a member is whole and names another file than the index does."""
    name, rows = index.sample(number)
    offset, _, _, kind = rows[member]
    header = parse(place.read(offset - BLOCK, BLOCK)) if offset >= BLOCK else None
    if header is None or len(header.name) >= _NAME_BYTES:
        return header is None and offset < BLOCK
    key = name.encode("utf-8", "surrogateescape")
    if not key.isascii() or len(key) + len(index.extensions[kind]) >= _NAME_BYTES:
        return False  # its true name is not in this header
    return header.name.lower() != key.lower() + b"." + index.extensions[kind].encode()


def shown(damage: tuple[Damage, ...], most: int = 3) -> str:
    """Names the first losses of a tar."""
    return "".join(f"; {key or 'unknown key'}: {reason}" for key, reason in damage[:most])


def _moved(promised: TarIndex, found: TarIndex) -> dict[int, list[Row]]:
    """Finds samples by key, with the same content as promised, at another place in the tar."""
    numbers = {key: number for number, key in enumerate(found.keys())}
    kinds = {
        number: promised.extensions.index(name)
        for number, name in enumerate(found.extensions)
        if name in promised.extensions
    }
    moved: dict[int, list[Row]] = {}
    for number, key in enumerate(promised.keys()):
        if key not in numbers:
            continue
        rows = [(at, size, check, kinds.get(kind, -1)) for at, size, check, kind in found.sample(numbers[key])[1]]
        wanted = promised.sample(number)[1]
        if rows != wanted and [row[1:] for row in rows] == [row[1:] for row in wanted]:
            moved[number] = rows
    return moved
