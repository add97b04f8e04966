"""What the manifest of a set of shards says of its tars, in little memory: a set may have a hundred thousand."""

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orchestrator.artifacts import MANIFEST, Shards
from orchestrator.data.index import SUFFIX, build_index, count_samples
from orchestrator.data.places import check_url, is_url
from orchestrator.errors import DamagedArtifact, InputError

_NO_DIGEST = bytes(32)
_ENTRY = ["path", "size_bytes", "sha256"]


class Promise(NamedTuple):
    """What a manifest says of a tar; None where it says nothing."""

    samples: int | None = None
    tar_bytes: int | None = None
    index_sha256: str | None = None
    alike: bool = True  # a sample that lacks what nearly all others have is half; not so in tars that we wrote


class TarList:
    """The tars of a finished set, in the order of their samples."""

    def __init__(self, folder: Path) -> None:
        """Reads the manifest only, or if that has no counts the head of each index."""
        self._folder = folder
        manifest = _read(folder)
        if manifest.get("kind") != Shards.kind:
            raise InputError(f"{folder} holds {manifest.get('kind')}, not shards")
        facts = manifest["facts"]
        self._adopted = "tars" in facts
        if self._adopted:
            tars, indexes, sizes = facts["tars"], facts["indexes"], facts["tar_bytes"]
        else:
            pairs = [entry for entry in manifest["files"] if entry[0].endswith(".tar")]
            tars, sizes = [tar for tar, _ in pairs], [size for _, size in pairs]
            indexes = [tar.removesuffix(".tar") + SUFFIX for tar in tars]
        if not len(tars) == len(indexes) == len(sizes):
            raise DamagedArtifact(f"the manifest of {folder} contradicts itself: tars, indexes and tar_bytes differ")
        _check_names(folder, tars, indexes, adopted=self._adopted)
        self._tars, self._indexes, self._bytes = _Names(tars), _Names(indexes), np.array(sizes, np.int64)
        digests = {path: digest for path, digest in manifest["files"] if isinstance(digest, bytes)}
        self._digests = b"".join(digests.get(name, _NO_DIGEST) for name in indexes)
        self.ends = list(accumulate(self._counts(facts.get("samples_per_tar"))))

    def __len__(self) -> int:
        """Counts the tars."""
        return len(self._tars)

    def tar(self, number: int) -> str:
        """Returns where a tar lies: a path or a URL."""
        name = self._tars[number]
        return name if name.startswith("/") or is_url(name) else f"{self._folder}/{name}"

    def index(self, number: int) -> Path:
        """Returns where the index of a tar lies."""
        return self._folder / self._indexes[number]

    def begin(self, number: int) -> int:
        """Returns the number of a tar's first sample within the set."""
        return self.ends[number - 1] if number else 0

    def promise(self, number: int) -> Promise:
        """Returns what the manifest says of a tar."""
        samples = self.ends[number] - self.begin(number)
        digest = self._digests[number * len(_NO_DIGEST) : (number + 1) * len(_NO_DIGEST)]
        sha256 = None if digest == _NO_DIGEST else digest.hex()
        return Promise(samples, int(self._bytes[number]), sha256, self._adopted)

    def _counts(self, counts: Any) -> list[int]:
        """Takes the samples per tar from the manifest, or else from the indexes."""
        if isinstance(counts, list) and len(counts) == len(self) and all(type(count) is int for count in counts):
            return counts
        indexes = [(self.index(number), self.tar(number)) for number in range(len(self))]
        return [count_samples(index) if index.is_file() else len(build_index(Path(tar))) for index, tar in indexes]


class _Names:
    """Many texts as one: a string each would cost more memory than all else about a set."""

    def __init__(self, names: Sequence[str]) -> None:
        self._text = "".join(names)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> str:
        return self._text[int(self._ends[number - 1]) if number else 0 : int(self._ends[number])]


def _read(folder: Path) -> dict[str, Any]:
    """Reads a manifest, of each file only what is needed, as a pair where it would be a mapping."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedArtifact(f"{folder} holds no complete shards: there is no {MANIFEST} in it") from None
    try:
        manifest: Any = json.loads(text, object_pairs_hook=_compact)
    except ValueError as error:
        raise DamagedArtifact(f"{folder / MANIFEST} is no manifest: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("facts"), dict):
        raise DamagedArtifact(f"{folder / MANIFEST} is no manifest: it has no facts")
    return dict(manifest)


def _compact(pairs: list[tuple[str, Any]]) -> Any:
    """Keeps of a tar its path and size, of an index its path and sha256, and of other files the path."""
    if [name for name, _ in pairs] != _ENTRY:
        return dict(pairs)
    path, size, sha256 = (value for _, value in pairs)
    return path, bytes.fromhex(sha256) if path.endswith(SUFFIX) else size


def _check_names(folder: Path, tars: Sequence[str], indexes: Sequence[str], *, adopted: bool) -> None:
    """Refuses names that lead out of the folder; only who adopts tars may say where else they lie."""
    for name in tars:
        if is_url(name):
            check_url(name)
        elif not adopted or not name.startswith("/"):
            _check_inside(folder, name)
    for name in indexes:
        _check_inside(folder, name)


def _check_inside(folder: Path, relative: str) -> None:
    if relative.startswith("/") or ".." in relative.split("/"):
        raise DamagedArtifact(f"the manifest of {folder} names a file outside of it: {relative}")
