"""Tars that belong together: those of a finished set of shards, or of any folder, or one tar."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.artifacts import MANIFEST, Shards
from orchestrator.data.index import TarIndex, count_samples, index_of, index_path
from orchestrator.data.listing import Promise, TarList
from orchestrator.data.reader import ShardReader
from orchestrator.data.remote import Remote, open_place
from orchestrator.errors import InputError
from orchestrator.records import record


@record
class Entry:
    """One tar of a collection."""

    name: str  # as a person would name it
    tar: str  # a path or a URL
    index: Path  # where its index is, or would be
    promise: Promise
    sha256: Mapping[str, str]  # of the files beside the manifest that are this tar's: path -> hex

    def open(self) -> ShardReader:
        """Opens the tar for reading samples."""
        return ShardReader(self.tar, self.index, self.promise)

    def walk(self) -> TarIndex:
        """Reads the tar once and returns the index that it should have."""
        place = open_place(self.tar, Remote())
        try:
            return index_of(place, self.tar, alike=self.promise.alike)
        finally:
            place.close()

    def count(self) -> int:
        """Counts the samples, by the manifest, the index, or else by walking through the tar."""
        if self.promise.samples is not None:
            return self.promise.samples
        return count_samples(self.index) if self.index.is_file() else len(self.walk())


@record
class Collection:
    """Tars, and what their manifest says of them, if they have one."""

    path: Path
    entries: tuple[Entry, ...]
    manifest: Mapping[str, Any] | None

    @property
    def facts(self) -> Mapping[str, Any]:
        """Returns what the writer of the set wanted its readers to know."""
        facts: Mapping[str, Any] = {} if self.manifest is None else self.manifest["facts"]
        return facts

    def faults(self) -> list[str]:
        """Lists how files differ from the manifest in being there and in size."""
        return [] if self.manifest is None else Shards(self.path).damage()


def open_collection(path: Path) -> Collection:
    """Finds the tars of a finished set, of a folder (also below it), or the one tar that is named."""
    if path.is_file():
        if path.suffix != ".tar":
            raise InputError(f"{path} is no tar; allowed: a .tar, a folder of them, or a finished set of shards")
        return Collection(path=path, entries=(_plain(path, path.name),), manifest=None)
    if not path.is_dir():
        raise InputError(f"{path} does not exist; allowed: a finished set of shards, a folder of tars, or a .tar")
    manifest = Shards(path).manifest()
    if manifest is not None:
        return Collection(path=path, entries=_promised(path, manifest), manifest=manifest)
    tars = sorted(path.glob("*.tar")) or sorted(path.rglob("*.tar"))
    if not tars:
        shown = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise InputError(f"{path} holds neither a {MANIFEST} nor a .tar; it holds {shown}")
    entries = tuple(_plain(tar, tar.relative_to(path).as_posix()) for tar in tars)
    return Collection(path=path, entries=entries, manifest=None)


def _plain(tar: Path, name: str) -> Entry:
    return Entry(name=name, tar=str(tar), index=index_path(tar), promise=Promise(), sha256={})


def _promised(path: Path, manifest: Mapping[str, Any]) -> tuple[Entry, ...]:
    listed = TarList(path)
    known = {str(path / file["path"]): file["sha256"] for file in manifest["files"]}
    entries = []
    for number in range(len(listed)):
        tar, index = listed.tar(number), listed.index(number)
        sha256 = {file: known[file] for file in (tar, str(index)) if file in known}
        name, promise = tar.removeprefix(f"{path}/"), listed.promise(number)
        entries.append(Entry(name=name, tar=tar, index=index, promise=promise, sha256=sha256))
    return tuple(entries)
