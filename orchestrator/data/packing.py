"""Which samples share a place or lie side by side, decided once from their lengths and kept on disk.

A plan cuts the samples of a source into units: packs, whose samples together fill a place of the global batch up to a
budget, or buckets, whose samples are of near-equal length and take neighbouring places. The order then draws units as
it otherwise draws samples, so a packed run resumes at any step like any other. Every sample is in exactly one unit.

Packs are made by best fit, longest first, among `window` neighbouring samples: what is read together lies together.
Buckets are cut from the same windows, sorted by length; what fills no bucket goes on to the next window, and the last
bucket is filled up with samples next to it in length, which so come twice an epoch (`repeated` in the facts, at most
size - 1). Samples of length 0 could not be measured and are left out, as are those over the budget unless the rule
is to keep each of them alone; the facts count them.

On disk: `starts.npy` (u64: where each unit begins in the members, and their end), `members.npy` (u32 or u64: numbers of
samples), both mapped into memory, and `plan.json`, written last: rule, facts and digest.
"""

import hashlib
import json
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.artifacts import write_json
from orchestrator.data.lengths import Lengths, NpyDraft
from orchestrator.data.rules import BucketRule, PackRule
from orchestrator.errors import DamagedArtifact, InputError

PLAN = "plan.json"
_FACTS = ("samples", "units", "padding", "repeated", "unmeasured", "too_long")

Units = Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]  # the samples of some units in a row; how many each has


class PackingPlan:
    """The units of a source: which samples make up each."""

    def __init__(self, directory: Path, lengths: Lengths) -> None:
        """Opens a plan that `make_plan` has made of these lengths."""
        try:
            document = json.loads((directory / PLAN).read_text(encoding="utf-8"))
            self._starts = np.load(directory / "starts.npy", mmap_mode="r")
            self._members = np.load(directory / "members.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DamagedArtifact(f"{directory} holds no packing plan: {error}") from error
        if len(self._starts) != document["units"] + 1 or len(self._members) != self._starts[-1]:
            raise DamagedArtifact(f"{directory}: starts.npy and members.npy are not of the plan in {PLAN}")
        self.rule: dict[str, Any] = document["rule"]
        self.digest: str = document["digest"]
        self.facts: dict[str, Any] = {name: document[name] for name in _FACTS}
        self.lengths = lengths
        self._shortest = document["shortest"]

    def __len__(self) -> int:
        """Counts the units."""
        return len(self._starts) - 1

    @property
    def places(self) -> int:
        """Counts the places of the global batch that a unit takes: 1 for a pack, its size for a bucket."""
        return int(self.rule.get("size", 1))

    @property
    def samples_per_unit(self) -> Fraction:
        """Returns how many samples a unit has, on average."""
        return Fraction(len(self._members), len(self))

    def members(self, unit: int) -> NDArray[np.int64]:
        """Returns the numbers of the samples in a unit."""
        return np.asarray(self._members[int(self._starts[unit]) : int(self._starts[unit + 1])]).astype(np.int64)

    def stand_in(self, number: int, candidates: NDArray[np.int64], attempt: int) -> int:
        """Chooses who can take a sample's place: the longest candidate that is no longer, else one of the shortest.

        Only the very shortest sample of a source can be replaced by one that is longer.
        """
        lengths = self.lengths.values
        found = lengths[candidates].astype(np.int64)
        fitting = np.flatnonzero((found > 0) & (found <= int(lengths[number])))
        if len(fitting):
            return int(candidates[fitting[found[fitting].argmax()]])
        others = [other for other in self._shortest if other != number]
        if not others:
            raise InputError(f"sample {number} is damaged, and no other of its source can take its place")
        no_longer = [other for other in others if lengths[other] <= lengths[number]] or others
        return int(no_longer[(attempt - 1) % len(no_longer)])


def make_plan(directory: Path, lengths: Lengths, rule: PackRule | BucketRule) -> PackingPlan:
    """Plans the units of a source in a folder, or opens the plan that is there if it is of these lengths and rule."""
    wanted = {"rule": asdict(rule), "lengths": lengths.digest}
    if _held(directory) != wanted:
        values = lengths.values
        units = _packs(values, rule) if isinstance(rule, PackRule) else _buckets(values, rule)
        document = _written(directory, len(values), units)
        if not document["units"]:
            raise InputError(
                f"no sample of {lengths.origin} can be used: all are unmeasured or too long for the budget"
            )
        write_json(directory / PLAN, {**wanted, **document, **_judged(directory, values, rule)})
    return PackingPlan(directory, lengths)


def _held(directory: Path) -> dict[str, Any] | None:
    try:
        document = json.loads((directory / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return {"rule": document["rule"], "lengths": document["lengths"]}


def _packs(lengths: NDArray[np.uint32], rule: PackRule) -> Units:
    for first in range(0, len(lengths), rule.window):
        window = np.asarray(lengths[first : first + rule.window]).astype(np.int64)
        usable = window > 0 if rule.too_long == "alone" else (window > 0) & (window <= rule.budget)
        numbers = np.flatnonzero(usable)
        if not len(numbers):
            continue
        packs = _best_fit(window[numbers], rule.budget)
        order = np.argsort(packs, kind="stable")  # inside a pack, and among packs, in the order of the tars
        yield numbers[order] + first, np.bincount(packs)


def _best_fit(lengths: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """Puts each length, the longest first, into the pack that it fills best; returns its pack, by first sample."""
    order = np.argsort(-lengths, kind="stable")
    shortest, packs, chosen = int(lengths.min()), 0, []
    free: list[int] = []  # (room left, pack) as one number, sorted: only packs with room for the shortest
    for length in lengths[order].tolist():
        at = bisect_left(free, length << 32)
        if at < len(free):
            room, pack = divmod(free.pop(at), 1 << 32)
        else:
            room, pack, packs = budget, packs, packs + 1
        chosen.append(pack)
        if room - length >= shortest:
            insort(free, (room - length) << 32 | pack)
    found = np.empty(len(lengths), np.int64)
    found[order] = chosen
    _, first, renamed = np.unique(found, return_index=True, return_inverse=True)
    rank = np.empty(packs, np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(packs)
    return rank[renamed]


def _buckets(lengths: NDArray[np.uint32], rule: BucketRule) -> Units:
    left = np.empty(0, np.int64)
    last = left
    for first in range(0, len(lengths), rule.window):
        window = np.asarray(lengths[first : first + rule.window])
        numbers = np.concatenate([left, np.flatnonzero(window) + first])
        numbers = numbers[np.argsort(lengths[numbers], kind="stable")]
        full = len(numbers) // rule.size
        last, left = numbers, numbers[full * rule.size :]
        if full:
            yield numbers[: full * rule.size], np.full(full, rule.size)
    if len(left):
        filled = np.resize(last[-rule.size :], rule.size) if len(last) < rule.size else last[-rule.size :]
        yield filled, np.array([rule.size])


def _written(directory: Path, samples: int, units: Units) -> dict[str, Any]:
    """Writes the units as they come, so that a billion samples need no memory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / PLAN).unlink(missing_ok=True)  # from here on the files are of no plan, until the new one is whole
    digest, end, count = hashlib.sha256(), 0, 0
    numbers = np.dtype(np.uint32 if samples <= 2**32 else np.uint64)
    with (
        NpyDraft(directory / "starts.npy", np.dtype(np.uint64)) as starts,
        NpyDraft(directory / "members.npy", numbers) as members,
    ):
        starts.append(np.zeros(1, np.uint64))
        for of_units, sizes in units:
            ends = end + np.cumsum(sizes)
            starts.append(ends)
            members.append(of_units)
            digest.update(ends.astype("<u8").tobytes() + of_units.astype("<u8").tobytes())
            end, count = int(ends[-1]), count + len(sizes)
    return {"units": count, "digest": digest.hexdigest()}


def _judged(directory: Path, lengths: NDArray[np.uint32], rule: PackRule | BucketRule) -> dict[str, Any]:
    """Counts what became of the samples, and how much of the places is padding."""
    starts = np.load(directory / "starts.npy", mmap_mode="r")
    members = np.load(directory / "members.npy", mmap_mode="r")
    unmeasured = too_long = 0
    used = held = 0
    shortest: list[tuple[int, int]] = []
    for first in range(0, len(lengths), 2**20):
        values = np.asarray(lengths[first : first + 2**20]).astype(np.int64)
        unmeasured += int((values == 0).sum())
        too_long += int((values > rule.budget).sum()) if isinstance(rule, PackRule) else 0
        usable = np.flatnonzero(values)
        some = usable[np.argsort(values[usable], kind="stable")[:16]]
        shortest = sorted([*shortest, *zip(values[some].tolist(), (some + first).tolist(), strict=True)])[:16]
    for unit in range(0, len(starts) - 1, 2**16):
        bounds = np.asarray(starts[unit : unit + 2**16 + 1]).astype(np.int64)
        values = np.asarray(lengths[members[bounds[0] : bounds[-1]]]).astype(np.int64)
        used += int(np.minimum(values, rule.budget).sum()) if isinstance(rule, PackRule) else int(values.sum())
        longest = np.maximum.reduceat(values, bounds[:-1] - bounds[0])
        held += rule.budget * len(longest) if isinstance(rule, PackRule) else int(longest.sum()) * rule.size
    kept = len(lengths) - unmeasured - (too_long if _leaves_out(rule) else 0)
    return {
        "samples": kept, "padding": 1 - used / held, "repeated": len(members) - kept,
        "unmeasured": unmeasured, "too_long": too_long, "shortest": [number for _, number in shortest],
    }  # fmt: skip


def _leaves_out(rule: PackRule | BucketRule) -> bool:
    return isinstance(rule, PackRule) and rule.too_long == "leave_out"
