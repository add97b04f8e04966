"""Samples in, tars out: plain WebDataset tars with an index beside each, equal bytes for equal samples."""

import hashlib
import io
import logging
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from orchestrator.artifacts import file_sha256
from orchestrator.data.index import SUFFIX, TarIndex, build_index, index_path
from orchestrator.errors import DamagedArtifact, InputError, SurroundingsError

log = logging.getLogger(__name__)

_KEY = re.compile(r"(?!__)[^./\\\x00-\x1f\x7f\ud800-\udfff]+")
_EXTENSION = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_KEY_LIMIT_BYTES = 255
_OURS = re.compile(rf"\.?shard-\d{{6}}(\.tar|\{SUFFIX})(\..*draft)?")


class ShardWriter:
    """Writes samples as `shard-000000.tar` and so on, `shard-000000.idx` beside each. Starts with an empty set.

    with ShardWriter(directory) as writer:
        writer.write("000042", {"jpg": ..., "json": ...})
        facts = writer.close()
    shards.commit(fingerprint, facts=facts, sha256=writer.sha256)
    """

    def __init__(self, directory: Path, *, samples_per_shard: int = 1000, max_bytes: int = 512 * 2**20) -> None:
        """Begins a set of shards in a directory; a tar is full at either limit, whichever comes first."""
        for name, given in (("samples_per_shard", samples_per_shard), ("max_bytes", max_bytes)):
            if given < 1:
                raise InputError(f"{name} must be 1 or more, not {given}")
        self._directory = directory
        self._samples_per_shard = samples_per_shard
        self._max_bytes = max_bytes
        self._samples_per_tar: list[int] = []
        self._bytes = 0
        self._tar: TarDraft | None = None
        self._sha256: dict[str, str] = {}
        with _named(directory):
            directory.mkdir(parents=True, exist_ok=True)
            for path in directory.iterdir():
                if _OURS.fullmatch(path.name):
                    path.unlink()

    @property
    def sha256(self) -> Mapping[str, str]:
        """Returns the sha256 of every finished file, by its path inside the directory, for `Artifact.commit`."""
        return dict(self._sha256)

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Adds a sample: a key that is new to the set, and its members by extension ("jpg", "json").

        A key that is in the same tar already is refused. Over all tars `orch data verify` looks for repeated keys:
        to remember those of a large set would fill the memory, and samples are read by their number.
        """
        size = sum(len(content) for content in members.values())
        if self._tar is not None and self._tar.full(size, self._samples_per_shard, self._max_bytes):
            self._finish()
        if self._tar is None:
            self._tar = TarDraft(self._directory / f"shard-{len(self._samples_per_tar):06d}.tar")
        self._tar.write(key, members)

    def close(self) -> dict[str, Any]:
        """Finishes the last tar and returns facts for the manifest: samples, shards, bytes, samples_per_tar."""
        self._finish()
        return {
            "samples": sum(self._samples_per_tar),
            "shards": len(self._samples_per_tar),
            "bytes": self._bytes,
            "samples_per_tar": list(self._samples_per_tar),
        }

    def __enter__(self) -> Self:
        """Returns itself; `close` is called at the end unless it was called before."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Finishes the last tar, or throws its draft away if something went wrong."""
        if kind is None:
            self._finish()
        elif self._tar is not None:
            self._tar.discard()
            self._tar = None

    def _finish(self) -> None:
        if self._tar is None:
            return
        tar, self._tar = self._tar, None
        self._sha256 |= tar.finish()
        self._samples_per_tar.append(tar.samples)
        self._bytes += tar.path.stat().st_size


class TarDraft:
    """One tar that is being written under another name. Its bytes depend on its samples only: no clock, no user.

    The standard library writes it, as webdataset's TarWriter does, whose import takes longer than a small conversion.
    """

    def __init__(self, path: Path) -> None:
        """Begins a tar that will be called `path`, in a folder that exists."""
        self.path = path
        self.samples = 0
        self._content_bytes = 0
        self._keys: set[str] = set()
        self._draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
        with _named(self._draft):
            # in large pieces, so that the page cache keeps them in large pieces, which are read back much faster
            self._file = _Hashed(self._draft.open("wb", buffering=1 << 20))
        # typeshed asks for a file that can be read as well, which a stream that is only written is not
        self._tar = tarfile.open(fileobj=self._file, mode="w|", format=tarfile.PAX_FORMAT)  # type: ignore[call-overload]  # noqa: SIM115

    def full(self, size: int, samples: int, max_bytes: int) -> bool:
        """Tells whether another sample of `size` bytes would be too much."""
        return self.samples >= samples or self._content_bytes + size > max_bytes

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Adds a sample whose key the tar does not have yet."""
        _check(key, members)
        if key in self._keys:
            raise InputError(f"key {key!r} is there already: keys must be unique within a set of shards")
        self._keys.add(key)
        with _named(self._draft):
            for extension, content in sorted(members.items()):
                header = tarfile.TarInfo(f"{key}.{extension}")
                header.size, header.mode = len(content), 0o444
                self._tar.addfile(header, io.BytesIO(content))
        self.samples += 1
        self._content_bytes += sum(len(content) for content in members.values())

    def finish(self) -> dict[str, str]:
        """Closes the tar, reads it back into its index, and gives both their names: index first, tar last.

        Returns the sha256 of both files by name.
        """
        try:
            with _named(self._draft):
                self._tar.close()
                self._file.close()
                self._read_back().save(index_path(self.path))
                self._draft.replace(self.path)
        except BaseException:
            self.discard()
            raise
        beside = index_path(self.path)
        return {self.path.name: self._file.sha256.hexdigest(), beside.name: file_sha256(beside)}

    def discard(self) -> None:
        """Throws away what was written."""
        self._file.drop()
        self._tar.close()  # or tarfile would try to at some later time, and complain to nobody
        self._draft.unlink(missing_ok=True)

    def _read_back(self) -> TarIndex:
        index = build_index(self._draft, alike=False)  # who writes knows which members a sample needs
        if len(index) != self.samples or index.damage:
            raise DamagedArtifact(f"{self.path}: what was written reads back otherwise: {index.damage}")
        return index


class _Hashed:
    """A file that knows the sha256 of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, content: bytes) -> int:
        if self._file.closed:
            return len(content)
        self.sha256.update(content)
        return self._file.write(content)

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def drop(self) -> None:
        """Forgets what is written from now on."""
        try:
            self._file.close()
        except OSError:
            log.debug("closing a draft that is thrown away failed", exc_info=True)


def _check(key: str, members: Mapping[str, bytes]) -> None:
    if not _KEY.fullmatch(key) or len(key.encode()) > _KEY_LIMIT_BYTES:
        allowed = f"1 to {_KEY_LIMIT_BYTES} bytes without dot, slash, control characters or a leading '__'"
        raise InputError(f"key {key!r} cannot name a sample in a tar; allowed: {allowed}")
    if not members:
        raise InputError(f"sample {key!r} has no members")
    for extension in members:
        if not _EXTENSION.fullmatch(extension):
            raise InputError(
                f"sample {key!r}: member {extension!r}; allowed: lower-case letters, digits, '.', '_', '-'"
            )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns a refusal of the disk into a message that names the file."""
    try:
        yield
    except OSError as error:
        raise SurroundingsError(f"cannot write {path}: {error.strerror or error}") from error
