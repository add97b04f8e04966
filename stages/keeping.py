"""Shards again, with a member more beside each sample: a tar for a tar, so that an attempt can go on after another."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from orchestrator.artifacts import Shards, write_json
from orchestrator.data.reader import ShardSet
from orchestrator.data.writer import TarDraft
from orchestrator.errors import DamagedSample, InputError, Preempted
from orchestrator.records import record
from orchestrator.stage import StageContext

_COUNTED = ("samples", "shards", "bytes", "samples_per_tar")  # facts that are counted anew

log = logging.getLogger(__name__)
Taken = TypeVar("Taken")


class Maker(Protocol[Taken]):
    """Makes the member that is kept, of some samples at once."""

    member: str  # its extension
    at_once: int  # samples

    def take(self, key: str, members: Mapping[str, bytes]) -> Taken:
        """Takes of a sample what its member is made of; InputError: the sample is left out, with a warning."""

    def make(self, taken: Sequence[Taken]) -> Sequence[bytes]:
        """Makes the members of these samples."""


@record
class Kept:
    """What became of a set of shards, as the first rank knows it."""

    facts: Mapping[str, Any]  # for the manifest: those of the source, counted anew
    left_out: int  # samples


def keep_beside(
    maker: Maker[Taken], source: Shards, target: Shards, context: StageContext, *, made_of: Sequence[str] = ()
) -> Kept | None:
    """Writes the tars of `source` again, each sample with what is made of it; tar n by rank n % world.size.

    `made_of`: digests of what else decides the members; finished tars of another attempt count only where all are the
    same. Returns what came of it on the first rank. Collective: every rank must call; they meet after each tar, to stop
    together.
    """
    world = context.world
    key = json.dumps([context.fingerprint, *made_of, source.digest()])
    receipts = Receipts(context.directory / "kept", target.path, hashlib.sha256(key.encode()).hexdigest())
    if world.is_main:
        receipts.tidy()
    world.barrier()
    with ShardSet(source.path) as samples:
        tars = [list(numbers) for _, numbers in groupby(range(len(samples)), lambda one: samples.locate(one)[0])]
        for first in range(0, len(tars), world.size):
            own = first + world.rank
            if own < len(tars) and receipts.read(own) is None:
                receipts.write(own, *_Tar(samples, maker).written(tars[own], receipts.tar(own)))
            done = min(first + world.size, len(tars))
            context.progress.advance(done, len(tars), "tar")
            if world.any(flag=context.stop()) and done < len(tars):
                raise Preempted(f"asked to stop after {done} of {len(tars)} tars, which are kept")
    world.barrier()
    if not world.is_main:
        return None
    inherited = {name: value for name, value in source.facts().items() if name not in _COUNTED}
    counts = receipts.counts(len(tars))
    return Kept(facts=inherited | counts, left_out=sum(map(len, tars)) - counts["samples"])


class Receipts:
    """What is known of finished tars."""

    def __init__(self, folder: Path, target: Path, made_of: str) -> None:
        """Keeps a file for each tar in `folder`; those of anything else than `made_of` count for nothing."""
        self._folder, self._target, self._made_of = folder, target, made_of
        for place in (folder, target):
            place.mkdir(parents=True, exist_ok=True)

    def tar(self, number: int) -> Path:
        """Returns where a tar is written."""
        return self._target / f"shard-{number:06d}.tar"

    def tidy(self) -> None:
        """Removes what is no finished tar. One rank calls it, at first."""
        whole = set[str]()
        for path in self._folder.iterdir():
            found = self.read(int(path.stem)) if path.stem.isdecimal() else None
            if found is None:
                path.unlink()
            else:
                whole |= set(found["sha256"])
        for path in self._target.iterdir():
            if path.name not in whole:
                path.unlink()

    def write(self, number: int, sha256: dict[str, str], samples: int) -> None:
        """Notes that a tar is finished."""
        document = {"made_of": self._made_of, "samples": samples, "sha256": sha256}
        write_json(self._path(number), document)

    def read(self, number: int) -> dict[str, Any] | None:
        """Returns what is known of a tar; None where it is not finished."""
        try:
            found: dict[str, Any] = json.loads(self._path(number).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        there = all((self._target / name).is_file() for name in found["sha256"])
        return found if there and found["made_of"] == self._made_of else None

    def counts(self, tars: int) -> dict[str, Any]:
        """Adds all tars up, to facts of a manifest and the digests of its files."""
        found = [known for number in range(tars) if (known := self.read(number)) is not None]
        assert len(found) == tars  # noqa: S101 - all ranks have met after the last one
        return {
            "samples": sum(known["samples"] for known in found),
            "shards": tars,
            "bytes": sum(self.tar(number).stat().st_size for number in range(tars)),
            "samples_per_tar": [known["samples"] for known in found],
            "sha256": {name: digest for known in found for name, digest in known["sha256"].items()},
        }

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.json"


@record
class _Read(Generic[Taken]):
    key: str
    members: Mapping[str, bytes]
    taken: Taken


class _Tar(Generic[Taken]):
    """Writes tars of what a maker makes."""

    def __init__(self, samples: ShardSet, maker: Maker[Taken]) -> None:
        self._samples, self._maker = samples, maker

    def written(self, numbers: Sequence[int], path: Path) -> tuple[dict[str, str], int]:
        """Writes one tar; returns the digests of its files, and how many samples it has."""
        draft = TarDraft(path)
        try:
            self._fill(draft, self._readable(numbers))
        except BaseException:
            draft.discard()
            raise
        return draft.finish(), draft.samples

    def _fill(self, draft: TarDraft, readable: Iterator[_Read[Taken]]) -> None:
        maker = self._maker
        while some := list(islice(readable, maker.at_once)):
            for one, made in zip(some, maker.make([one.taken for one in some]), strict=True):
                draft.write(one.key, {**one.members, maker.member: made})
        if not draft.samples:
            raise InputError(f"{draft.path}: no sample of its source can be read")

    def _readable(self, numbers: Sequence[int]) -> Iterator[_Read[Taken]]:
        for number in numbers:
            try:
                key, members = self._samples.read(number)
                yield _Read(key=key, members=members, taken=self._maker.take(key, members))
            except (DamagedSample, InputError) as error:
                log.warning("sample %d has no %s, and is left out: %s", number, self._maker.member, error)
