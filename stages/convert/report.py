"""What a finished conversion says of itself: facts for the manifest, skipped.jsonl, a summary in the log."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import InputError, SurroundingsError
from stages.convert.chunks import Chunks, Receipt
from stages.convert.counts import Counts
from stages.convert.parts import Part

SKIPPED = "skipped.jsonl"

log = logging.getLogger(__name__)


def report(
    source: str, chunks: Chunks, number: int, parts: Sequence[Part], noted: Sequence[dict[str, str]], shards: Path
) -> dict[str, Any]:
    """Adds up the receipts of the first `number` chunks; writes skipped.jsonl into the folder of the shards.

    `noted` are notes on what belongs to no record. The facts hold the digests of the tars under "sha256".
    """
    kept = _Kept(parts)
    try:
        with _Lines(shards / SKIPPED) as skipped:
            for receipt in _receipts(chunks, number, noted):
                kept.add(receipt)
                for note in receipt.skipped:
                    skipped.write(note)
            if not kept.samples_per_tar:
                raise InputError(f"nothing of {source} could be kept: {_why(kept.reasons, skipped.first)}")
    except OSError as error:
        raise SurroundingsError(f"cannot write {shards / SKIPPED}: {error.strerror}") from error
    facts = kept.facts()
    _summarize(facts, shards)
    return facts | {"sha256": kept.sha256}


class _Kept:
    """The sum of all receipts."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.samples_per_tar: list[int] = []
        self.reasons = Counter[str]()
        self.sha256: dict[str, str] = {}
        self._repaired = Counter[str]()
        self._counts: dict[str, list[Counts]] = {part.subset: [] for part in parts}
        self._size_bytes = 0
        self._records = 0

    def add(self, receipt: Receipt) -> None:
        if receipt.samples:
            self.samples_per_tar.append(receipt.samples)
        self.reasons.update(note["reason"] for note in receipt.skipped)
        self._repaired.update(receipt.repaired)
        for name, file in receipt.files.items():
            self.sha256[name] = file.sha256
            self._size_bytes += file.size_bytes if name.endswith(".tar") else 0
        for subset, packed in receipt.counts.items():
            self._counts[subset].append(Counts.unpacked(packed))
        self._records += receipt.records

    def facts(self) -> dict[str, Any]:
        by_subset = {subset: Counts.total(several) for subset, several in self._counts.items()}
        return {
            "samples": sum(self.samples_per_tar),
            "shards": len(self.samples_per_tar),
            "bytes": self._size_bytes,
            "samples_per_tar": self.samples_per_tar,
            "records": self._records,
            "counts": Counts.total(by_subset.values()).plain(),
            "counts_per_subset": {subset: one.plain() for subset, one in by_subset.items()},
            "skipped": {"total": self.reasons.total(), "reasons": dict(sorted(self.reasons.items()))},
            "repaired": dict(sorted(self._repaired.items())),
        }


def _receipts(chunks: Chunks, number: int, noted: Sequence[dict[str, str]]) -> Iterator[Receipt]:
    yield Receipt(plan="", number=-1, records=0, skipped=noted)
    for one in range(number):
        receipt = chunks.receipt(one)
        if receipt is None:
            raise SurroundingsError(f"chunk {one} was converted, and is not there: who else writes to its folder?")
        yield receipt


class _Lines:
    """A file of JSON lines, written by rename; it is not there if something goes wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
        self.first: dict[str, str] | None = None

    def __enter__(self) -> Self:
        self._file = self._draft.open("w", encoding="utf-8")
        return self

    def write(self, note: Any) -> None:
        self.first = self.first or note
        self._file.write(json.dumps(note, ensure_ascii=False) + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self._draft.replace(self._path)
        self._draft.unlink(missing_ok=True)


def _why(reasons: Counter[str], first: dict[str, str] | None) -> str:
    counted = [f"{reason} ({count} times)" for reason, count in sorted(reasons.items())]
    example = f", e.g. {first['record']}: {first['detail']}" if first else ""
    return ("; ".join(counted) + example) or "the annotation files hold no records"


def _summarize(facts: dict[str, Any], shards: Path) -> None:
    size = f"{facts['samples']} samples in {facts['shards']} tars, {facts['bytes'] / 1e6:.1f} MB"
    log.info("%d records became %s: %s", facts["records"], size, _listed(facts["counts"]))
    if facts["repaired"]:
        log.info("repaired: %s", _listed(facts["repaired"]))
    if facts["skipped"]["total"]:
        reasons = dict(sorted(facts["skipped"]["reasons"].items(), key=lambda reason: -reason[1]))
        log.warning(
            "left out %d: %s; each is named in %s", facts["skipped"]["total"], _listed(reasons), shards / SKIPPED
        )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)
