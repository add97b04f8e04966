"""Finds the index by which a tar can be read, also where tar, index and manifest do not agree.

Of the three the manifest is believed. An index that is as the manifest promises is the truth about every sample: of a
tar that was cut, damaged or replaced, whatever still has its checksum is kept, wherever it lies now, and nothing else.
An index that is missing, damaged or of another tar is made again in memory.
"""

import hashlib
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

_LOOKED_AT = 16
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


def fit(place: Place, name: str, loaded: TarIndex | None, promise: Promise, *, suspicious: bool = False) -> Fitted:
    """Returns the index for a tar: the one that was loaded, or one made now by reading the tar once.

    It is `suspicious` if what lies in the tar is not what the index says, although it has the right size.
    """
    size = place.size()
    agree = loaded is not None and promise.samples in (None, len(loaded)) and loaded.tar_bytes == size
    if loaded is not None and agree and promise.tar_bytes in (None, size) and not suspicious:
        return loaded, {}
    log.warning("%s and its index do not belong together: reading through the tar", name)
    found = index_of(place, name, alike=promise.alike)
    if loaded is not None and _is_promised(loaded, promise, suspicious=suspicious):
        return loaded, _moved(loaded, found)
    if promise.tar_bytes not in (None, size) and not found.damage:
        raise DamagedArtifact(f"the tar was replaced: {size} bytes and whole, its manifest says {promise.tar_bytes}")
    if promise.samples not in (None, len(found)):
        log.warning("%s has %d whole samples of %s%s", name, len(found), promise.samples, shown(found.damage))
    return found, {}


def misplaced(place: Place, index: TarIndex, number: int) -> bool:
    """Tells whether an index is not that of a tar: neither this sample nor most of others lie where it says."""
    if _lies_there(place, index, number):
        return False
    numbers = sorted({len(index) * part // _LOOKED_AT for part in range(_LOOKED_AT)})
    return 2 * sum(_lies_there(place, index, number) for number in numbers) < len(numbers)


def _lies_there(place: Place, index: TarIndex, number: int) -> bool:
    """Compares a sample's first header with the index."""
    key, rows = index.sample(number)
    offset, _, _, kind = rows[0]
    header = parse(place.read(offset - BLOCK, BLOCK)) if offset >= BLOCK else None
    name = f"{key}.{index.extensions[kind]}"
    if header is None or not name.isascii() or len(name) >= _NAME_BYTES:
        return header is not None  # the true name is not in this header
    return header.name.lower() == name.lower().encode()


def _is_promised(index: TarIndex, promise: Promise, *, suspicious: bool) -> bool:
    """Tells whether an index is the one that the manifest lists."""
    if promise.index_sha256 is not None:
        return hashlib.sha256(index.body).hexdigest() == promise.index_sha256
    sizes_agree = promise.samples in (None, len(index)) and promise.tar_bytes in (None, index.tar_bytes)
    return sizes_agree and not suspicious


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
