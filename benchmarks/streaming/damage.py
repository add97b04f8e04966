"""Cell d: what arrives from a damaged tar: wrong samples delivered, intact samples kept; ours against webdataset."""

import hashlib
import io
import json
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import webdataset

from benchmarks.claims import Claim, claim
from orchestrator.artifacts import Shards
from orchestrator.data.adopt import adopt
from orchestrator.data.reader import ShardSet
from orchestrator.data.remote import Remote
from orchestrator.data.verify import silence
from orchestrator.data.writer import ShardWriter
from orchestrator.errors import DamagedSample

SAMPLES = 200  # a tar
KEPT_BAR = 0.99
_HIT = SAMPLES // 2  # the sample that is hit
Members = Mapping[str, bytes]


class Fault(NamedTuple):
    """A way in which a tar can be broken."""

    name: str
    strike: Callable[[Path], None]
    hit: frozenset[int]  # samples that are not intact any more
    indexed: bool  # ours, broken after it was written; or else somebody else's


def survive_damage(folder: Path) -> list[Claim]:
    """Strikes one tar of two in each way, reads the set with each library, and counts."""
    silence()  # the reader would tell of every loss
    warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector
    claims = []
    for number, fault in enumerate(FAULTS):
        place = folder / f"fault-{number}"
        tars = _write(place)
        fault.strike(tars[0])
        if not fault.indexed:
            _forget(place)
        intact = 2 * SAMPLES - len(fault.hit)
        counts = [_count(found, fault) for found in (_ours(place, indexed=fault.indexed), _theirs(tars))]
        note = f"sample {_HIT} of {SAMPLES} in the first of two tars; " + (
            "written by us, broken later" if fault.indexed else "of others, adopted as it is"
        )
        claims.append(_wrong_claim(fault, [wrong for wrong, _ in counts], note))
        claims.append(_kept_claim(fault, [kept / intact for _, kept in counts], note))
    return claims


def _wrong_claim(fault: Fault, wrong: list[int], note: str) -> Claim:
    made = claim(
        f"d. wrong samples delivered: {fault.name}", [wrong[0]], [wrong[1]], "samples", peer_name="webdataset", bar=0.0,
        direction="at most", note=note,
    )  # fmt: skip
    return made | {"holds": wrong[0] == 0}


def _kept_claim(fault: Fault, kept: list[float], note: str) -> Claim:
    made = claim(
        f"d. intact samples kept: {fault.name}", [kept[0]], [kept[1]], "of 1", peer_name="webdataset", bar=KEPT_BAR,
        note=note,
    )  # fmt: skip
    return made | {"holds": kept[0] >= KEPT_BAR}


def _write(folder: Path) -> list[Path]:
    with ShardWriter(folder, samples_per_shard=SAMPLES) as writer:
        for number in range(2 * SAMPLES):
            writer.write(f"{number:06d}", _members(number))
        facts = writer.close()
    Shards(folder).commit("benchmark", facts=facts, sha256=writer.sha256)
    return sorted(folder.glob("*.tar"))


def _forget(folder: Path) -> None:
    """Leaves only the tars, as others have them."""
    for path in folder.iterdir():
        if path.suffix != ".tar":
            path.unlink()


def _members(number: int) -> dict[str, bytes]:
    content = hashlib.shake_128(str(number).encode()).digest(3000 + 7 * (number % 50))
    return {"jpg": content, "json": json.dumps({"number": number}).encode()}


def _count(found: Iterator[tuple[str, Members]], fault: Fault) -> tuple[int, int]:
    """Counts samples that are not what was written, and different intact ones that are."""
    wrong, kept = 0, set[int]()
    for key, members in found:
        try:
            number = int(json.loads(members["json"])["number"])
        except (KeyError, ValueError, TypeError):
            wrong += 1
            continue
        if dict(members) != _members(number) or key != f"{number:06d}":
            wrong += 1
        elif number not in fault.hit:
            kept.add(number)
    return wrong, len(kept)


def _ours(folder: Path, *, indexed: bool) -> Iterator[tuple[str, Members]]:
    if not indexed:
        adopt(str(folder), None, processes=1, remote=Remote(), advance=lambda *_: None)
    shards = ShardSet(folder)
    for number in range(len(shards)):
        with suppress(DamagedSample):
            yield shards.read(number)
    shards.close()


def _theirs(tars: Sequence[Path]) -> Iterator[tuple[str, Members]]:
    handler = webdataset.ignore_and_continue
    names = [str(tar) for tar in tars]
    for sample in webdataset.WebDataset(names, shardshuffle=False, handler=handler):
        yield sample["__key__"], {name: content for name, content in sample.items() if not name.startswith("__")}


def _places(tar: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(tar) as file:
        return {entry.name: entry for entry in file}


def _overwrite(tar: Path, offset: int, content: bytes) -> None:
    with tar.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def _cut(tar: Path) -> None:
    end = _places(tar)[f"{_HIT:06d}.json"].offset
    with tar.open("r+b") as file:
        file.truncate(end)


def _flip_header(tar: Path) -> None:
    _overwrite(tar, _places(tar)[f"{_HIT:06d}.jpg"].offset + 124, b"\xff\xff")


def _flip_payload(tar: Path) -> None:
    _overwrite(tar, _places(tar)[f"{_HIT:06d}.jpg"].offset_data + 1000, b"\x00\x00")


def _empty(tar: Path) -> None:
    tar.write_bytes(b"")


def _vanish(tar: Path) -> None:
    tar.unlink()


def _rewrite(tar: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> None:
    with tarfile.open(tar) as file:
        entries = [(entry.name, (file.extractfile(entry) or io.BytesIO()).read()) for entry in file]
    with tarfile.open(tar, "w") as file:
        for name, content in change(entries):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))


def _without_member(tar: Path) -> None:
    _rewrite(tar, lambda entries: [entry for entry in entries if entry[0] != f"{_HIT:06d}.jpg"])


def _twice(tar: Path) -> None:
    """Gives a sample the key of another, far from it."""
    old, new = f"{_HIT:06d}", f"{_HIT - 50:06d}"
    _rewrite(tar, lambda entries: [(name.replace(old, new), content) for name, content in entries])


def _interleave(tar: Path) -> None:
    def swap(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        at = 2 * _HIT
        entries[at + 1], entries[at + 2] = entries[at + 2], entries[at + 1]
        return entries

    _rewrite(tar, swap)


_ALL_OF_FIRST = frozenset(range(SAMPLES))
_ONE = frozenset({_HIT})
FAULTS = (
    Fault("tar cut inside a sample", _cut, frozenset(range(_HIT, SAMPLES)), indexed=True),
    Fault("header flipped", _flip_header, _ONE, indexed=True),
    Fault("payload flipped", _flip_payload, _ONE, indexed=True),
    Fault("zero-byte tar", _empty, _ALL_OF_FIRST, indexed=True),
    Fault("tar vanished", _vanish, _ALL_OF_FIRST, indexed=True),
    Fault("foreign tar cut", _cut, frozenset(range(_HIT, SAMPLES)), indexed=False),
    Fault("foreign header flipped", _flip_header, _ONE, indexed=False),
    Fault("member missing", _without_member, _ONE, indexed=False),
    Fault("key twice", _twice, frozenset({_HIT, _HIT - 50}), indexed=False),
    Fault("samples interleaved", _interleave, frozenset({_HIT, _HIT + 1}), indexed=False),
)
