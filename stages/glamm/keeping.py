"""Keeps the features of a set of shards: a tar for a tar, so that an attempt goes on where the last one ended."""

import hashlib
import json
import logging
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image

from orchestrator.artifacts import Checkpoint, Shards, write_json
from orchestrator.data.reader import ShardSet
from orchestrator.data.writer import TarDraft
from orchestrator.errors import DamagedSample, InputError, Preempted
from orchestrator.stage import StageContext
from stages.glamm.encoders import Encoders
from stages.glamm.features import FACT, MEMBER
from stages.samples import Sample
from stages.vision import decode_image

_RECEIPTS = "features"  # of finished tars, in the folder of the stage
_COUNTED = ("samples", "shards", "bytes", "samples_per_tar")  # facts that are counted anew
_PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}

log = logging.getLogger(__name__)


class _Config(Protocol):
    @property
    def precision(self) -> str: ...
    @property
    def images_at_once(self) -> int: ...


def keep_features(
    config: _Config, model: Checkpoint, source: Shards, target: Shards, context: StageContext
) -> dict[str, Any]:
    """Writes the tars of `source` again, with features; tar n by rank n % world.size. Returns facts on the first rank.

    Collective: every rank must call. Ranks meet after each tar, to stop together.
    """
    world = context.world
    made_of = json.dumps([context.fingerprint, model.digest(), source.digest()])
    receipts = Receipts(context.directory / _RECEIPTS, target.path, hashlib.sha256(made_of.encode()).hexdigest())
    if world.is_main:
        receipts.tidy()
    world.barrier()
    encoders = Encoders(model, precision=_PRECISIONS[config.precision], device=world.device)
    with ShardSet(source.path) as samples:
        tars = [list(numbers) for _, numbers in groupby(range(len(samples)), lambda one: samples.locate(one)[0])]
        for first in range(0, len(tars), world.size):
            own = first + world.rank
            if own < len(tars) and receipts.read(own) is None:
                receipts.write(own, *_written(samples, tars[own], receipts.tar(own), encoders, config.images_at_once))
            done = min(first + world.size, len(tars))
            context.progress.advance(done, len(tars), "tar")
            if world.any(flag=context.stop()) and done < len(tars):
                raise Preempted(f"asked to stop after {done} of {len(tars)} tars, which are kept")
    world.barrier()
    if not world.is_main:
        return {}
    inherited = {name: value for name, value in source.facts().items() if name not in _COUNTED}
    counts = receipts.counts(len(tars))
    left_out = sum(map(len, tars)) - counts["samples"]
    return (
        inherited | counts | {FACT: {"encoders": encoders.digest, "precision": config.precision, "left_out": left_out}}
    )


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


def _written(
    samples: ShardSet, numbers: list[int], path: Path, encoders: Encoders, at_once: int
) -> tuple[dict[str, str], int]:
    """Writes one tar; returns the digests of its files, and how many samples it has."""
    draft = TarDraft(path)
    try:
        _fill(draft, _readable(samples, numbers), encoders, at_once)
    except BaseException:
        draft.discard()
        raise
    return draft.finish(), draft.samples


def _fill(draft: TarDraft, readable: Iterator["_Read"], encoders: Encoders, at_once: int) -> None:
    while some := list(islice(readable, at_once)):
        for one, features in zip(some, encoders.encode([one.image for one in some]), strict=True):
            draft.write(one.key, {**one.members, MEMBER: features})
    if not draft.samples:
        raise InputError(f"{draft.path}: no sample of its source can be read")


class _Read(NamedTuple):
    key: str
    members: dict[str, bytes]
    image: Image.Image


def _readable(samples: ShardSet, numbers: list[int]) -> Iterator[_Read]:
    for number in numbers:
        try:
            key, members = samples.read(number)
            yield _Read(key, members, decode_image(Sample.from_members(key, members).image))
        except (DamagedSample, InputError) as error:
            log.warning("sample %d has no features, and is left out: %s", number, error)
