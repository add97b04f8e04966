"""What a set of shards holds, without reading its samples: manifest, sizes and indexes."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.data.collection import Collection, Entry
from orchestrator.data.index import TarIndex
from orchestrator.errors import DamagedArtifact

SAMPLES_LOOKED_AT = 200_000  # of very large sets, members are counted in some tars only, and the answer says so
_OF_THE_FACTS = (
    "schema",
    "source",
    "split",
    "subsets",
    "licence",
    "counts",
    "counts_per_subset",
    "skipped",
    "repaired",
)

Advance = Callable[[int, int], None]  # how many of how many


def summarize(collection: Collection, advance: Advance) -> dict[str, Any]:
    """Describes a set: the keys of `orch data inspect --json`."""
    facts, manifest = collection.facts, collection.manifest
    tars = _Tars()
    for number, entry in enumerate(collection.entries, start=1):
        tars.look_at(entry)
        advance(number, len(collection.entries))
    return {
        "path": str(collection.path),
        "kind": "tars" if manifest is None else "shards",
        "samples": tars.samples,
        "shards": len(collection.entries),
        "bytes": sum(size for size, _ in tars.sizes),
        "members": tars.members(),
        "members_counted_in": tars.looked_at,
        **{key: facts.get(key) for key in _OF_THE_FACTS},
        "largest": tars.extreme(max),
        "smallest": tars.extreme(min),
        "without_index": tars.without_index,
        "damage": tars.damage,
        "faults": collection.faults(),
        "fingerprint": None if manifest is None else manifest["fingerprint"],
        "digest": None if manifest is None else manifest["digest"],
    }


class _Tars:
    """What was seen while going through the tars."""

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()
        self._samples: Counter[str] = Counter()
        self._seen: dict[str, dict[str, int | str]] = {}
        self.samples = 0
        self.looked_at = 0
        self.sizes: list[tuple[int, str]] = []
        self.without_index: list[str] = []
        self.damage: list[dict[str, str]] = []

    def look_at(self, entry: Entry) -> None:
        """Takes one tar into account."""
        name, promised = entry.name, entry.promise.samples
        try:
            index = self._index(entry)
        except (DamagedArtifact, OSError) as error:
            self.samples += promised or 0
            self.damage.append({"tar": name, "key": "", "reason": _plain_reason(error)})
            return
        self.sizes.append((index.tar_bytes, name))
        self.samples += len(index) if promised is None else promised
        self._seen[name] = {"tar": name, "bytes": index.tar_bytes, "samples": len(index)}
        self.damage += [{"tar": name, "key": key, "reason": reason} for key, reason in index.damage]
        if sum(self._samples.values()) < SAMPLES_LOOKED_AT:
            self._count_members(index)

    def members(self) -> dict[str, dict[str, float]]:
        """Tells per extension how many samples have it and how large it is on average."""
        return {
            name: {"samples": count, "bytes": self._bytes[name], "mean_bytes": round(self._bytes[name] / count, 1)}
            for name, count in sorted(self._samples.items())
        }

    def extreme(self, choose: Callable[[list[tuple[int, str]]], tuple[int, str]]) -> Mapping[str, int | str] | None:
        """Describes the largest or the smallest tar."""
        return self._seen[choose(self.sizes)[1]] if self.sizes else None

    def _index(self, entry: Entry) -> TarIndex:
        try:
            return TarIndex.load(entry.index)
        except FileNotFoundError:
            self.without_index.append(entry.name)
        except DamagedArtifact as error:
            self.damage.append({"tar": entry.name, "key": "", "reason": str(error)})
        return entry.walk()

    def _count_members(self, index: TarIndex) -> None:
        self.looked_at += 1
        for number in range(len(index)):
            for member in index.members(number):
                self._samples[member.extension] += 1
                self._bytes[member.extension] += member.size


def _plain_reason(error: Exception) -> str:
    return f"{error.strerror}" if isinstance(error, OSError) else str(error)
