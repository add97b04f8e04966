"""The chunks of a conversion: so many records in a row, one tar, and a receipt that says the tar is finished.

Which records a chunk has depends on their place in the files alone, so its bytes do not depend on who converts it, or
after how many attempts. A chunk of which nothing could be kept has a receipt and no tar; the others keep their numbers.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.artifacts import write_json
from orchestrator.children import Tell
from orchestrator.data.writer import TarDraft
from orchestrator.errors import InputError, SurroundingsError
from orchestrator.records import record
from stages.convert.counts import Counts
from stages.convert.parts import Part
from stages.convert.raw import Attempt, Found, Notes

_TELL_EVERY = 16  # records

log = logging.getLogger(__name__)


@record
class Chunk:
    """Neighbouring records, across parts."""

    number: int
    attempts: Sequence[tuple[Part, Attempt]]


@record
class File:
    """A finished file of a chunk."""

    size_bytes: int
    sha256: str


@record
class Receipt:
    """What became of a chunk; it is written when everything else is."""

    plan: str  # what the chunk was made of: a receipt of another plan is worth nothing
    number: int
    records: int
    samples: int = 0
    files: Mapping[str, File] = field(default_factory=dict)  # name -> file, the tar and its index
    counts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # subset -> packed Counts
    skipped: Sequence[Mapping[str, str]] = ()
    repaired: Mapping[str, int] = field(default_factory=dict)


class Chunks:
    """The chunks of one plan on disk: tars in the folder of the shards, receipts in a folder of their own."""

    def __init__(self, shards: Path, receipts: Path, plan: str) -> None:
        """Names the folders; nothing is read or written yet."""
        self._shards = shards
        self._receipts = receipts
        self._plan = plan

    def tidy(self) -> int:
        """Removes all that is no finished chunk of this plan, and returns how many are. One rank calls it, at first."""
        try:
            for folder in (self._shards, self._receipts):
                folder.mkdir(parents=True, exist_ok=True)
            kept, files = set[str](), set[str]()
            for path in self._receipts.iterdir():
                receipt = self._read(path)
                if receipt is not None and path == self._path(receipt.number):
                    kept.add(path.name)
                    files |= set(receipt.files)
            for folder, names in ((self._receipts, kept), (self._shards, files)):
                for path in folder.iterdir():
                    if path.name not in names:
                        path.unlink()
        except OSError as error:
            raise SurroundingsError(f"cannot write to {error.filename}: {error.strerror}") from error
        return len(kept)

    def forget(self) -> None:
        """Takes back every receipt: the next attempt converts everything again."""
        for path in self._receipts.iterdir():
            path.unlink()

    def receipt(self, number: int) -> Receipt | None:
        """Returns the receipt of a chunk that is finished."""
        return self._read(self._path(number))

    def convert(self, chunk: Chunk, notes: Notes, tell: Tell) -> None:
        """Converts a chunk; tells how many records are done and how many things were left out, now and then."""
        notes.forget()  # what the parent has noted is the parent's to report
        counts: dict[str, Counts] = {}
        tar: TarDraft | None = None
        try:
            for part, sample in self._kept(chunk, notes, tell):
                tar = tar or TarDraft(self._shards / f"shard-{chunk.number:06d}.tar")
                tar.write(sample.found.sample.key, sample.members)
                counts.setdefault(part.subset, Counts()).add(sample.found, part.text)
        except BaseException:
            if tar is not None:
                tar.discard()
            raise
        sha256 = {} if tar is None else tar.finish()
        files = {name: File(size_bytes=(self._shards / name).stat().st_size, sha256=sha256[name]) for name in sha256}
        receipt = Receipt(
            plan=self._plan, number=chunk.number, records=len(chunk.attempts),
            samples=0 if tar is None else tar.samples, files=files,
            counts={subset: one.packed() for subset, one in counts.items()},
            skipped=notes.skipped, repaired=dict(sorted(notes.repaired.items())),
        )  # fmt: skip
        self._write(receipt)
        tell((receipt.records, len(receipt.skipped)))

    def _kept(self, chunk: Chunk, notes: Notes, tell: Tell) -> "Iterator[tuple[Part, _Made]]":
        keys: set[str] = set()
        for done, (part, attempt) in enumerate(chunk.attempts, start=1):
            for made in notes.judged(attempt.name, partial(_made, attempt)) or ():
                if (key := made.found.sample.key) in keys:
                    raise InputError(f"{attempt.name}: the key {key!r} is there already")
                keys.add(key)
                yield part, made
            if done % _TELL_EVERY == 0:
                tell((done, len(notes.skipped)))

    def _write(self, receipt: Receipt) -> None:
        path = self._path(receipt.number)
        try:
            write_json(path, asdict(receipt))
        except OSError as error:
            raise SurroundingsError(f"cannot write {path}: {error.strerror}") from error

    def _path(self, number: int) -> Path:
        return self._receipts / f"{number:06d}.json"

    def _read(self, path: Path) -> Receipt | None:
        """Reads a receipt; None unless it is of this plan and its files are there with the sizes it names."""
        try:
            plain = json.loads(path.read_bytes())
            files = {name: File(**file) for name, file in plain.pop("files").items()}
            receipt = Receipt(files=files, **plain)
            sizes = {name: (self._shards / name).stat().st_size for name in files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read, its chunk is converted again: %s", path, error)
            return None
        whole = receipt.plan == self._plan and sizes == {name: file.size_bytes for name, file in files.items()}
        return receipt if whole else None


@record
class _Made:
    """A sample and what a tar holds of it."""

    found: Found
    members: Mapping[str, bytes]


def _made(attempt: Attempt) -> list[_Made]:
    """Makes the samples of a record, encoded: what cannot be encoded is broken, too."""
    built = attempt.build()
    several = [built] if isinstance(built, Found) else built
    return [_Made(found=found, members=found.sample.to_members()) for found in several]
