"""What stages hand to each other: directories that are complete exactly when their manifest exists."""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from orchestrator.errors import DamagedArtifact

MANIFEST = "manifest.json"
STALE_TRIES = 5


@dataclass(frozen=True, slots=True)
class Artifact:
    """A directory that is written once and is ready exactly when its manifest exists.

    The manifest holds `kind`, `fingerprint` (of the stage that wrote it), `digest` (of the content), `files`
    (path, size_bytes, sha256) and `facts` (whatever the writer wants readers to know).
    """

    path: Path
    kind: ClassVar[str] = "artifact"

    def ready(self, fingerprint: str | None = None) -> bool:
        """Tells whether the artifact is complete and, if asked, the work of the stage with this fingerprint."""
        manifest = self.manifest()
        if manifest is None or manifest["kind"] != self.kind:
            return False
        return fingerprint is None or manifest["fingerprint"] == fingerprint

    def manifest(self) -> dict[str, Any] | None:
        """Reads the manifest; None while the artifact is not complete."""
        try:
            text = (self.path / MANIFEST).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        manifest: dict[str, Any] = json.loads(text)
        return manifest

    def facts(self) -> dict[str, Any]:
        """Returns what the writer recorded about the content."""
        manifest = self.manifest()
        if manifest is None:
            raise DamagedArtifact(f"{self.path} holds no complete {self.kind}: there is no {MANIFEST} in it")
        facts: dict[str, Any] = manifest["facts"]
        return facts

    def digest(self) -> str:
        """Returns the sha256 of the content: equal digests, equal files."""
        manifest = self.manifest()
        return "" if manifest is None else str(manifest["digest"])

    def commit(
        self,
        fingerprint: str,
        facts: Mapping[str, Any] | None = None,
        sha256: Mapping[str, str] | None = None,
        only: Iterable[str] | None = None,
    ) -> None:
        """Declares the artifact complete: lists its files, then writes the manifest last, by rename.

        `sha256` holds digests that the writer knows already (relative POSIX path -> hex), to save a second read.
        `only` names the files that belong to it, in a folder that holds files of others too.
        """
        known = sha256 or {}
        paths = self._files() if only is None else (self.path / name for name in only)
        files = [self._entry(path, known) for path in sorted(paths)]
        manifest = {
            "kind": self.kind,
            "fingerprint": fingerprint,
            "digest": _digest_of(files),
            "files": files,
            "facts": dict(facts or {}),
        }
        write_json(self.path / MANIFEST, manifest)

    def damage(self, *, deep: bool = False) -> list[str]:
        """Lists how the files differ from the manifest: missing or of another size, or if `deep` of other content."""
        manifest = self.manifest()
        if manifest is None:
            return [f"{self.path}: no {MANIFEST}"]
        found = []
        for entry in manifest["files"]:
            path = self.path / entry["path"]
            if not path.is_file():
                found.append(f"{path} is missing")
            elif (size := path.stat().st_size) != entry["size_bytes"]:
                found.append(f"{path} has {size} bytes, its manifest says {entry['size_bytes']}")
            elif deep and file_sha256(path) != entry["sha256"]:
                found.append(f"{path} has other content than its manifest says (sha256 differs)")
        return found

    def _files(self) -> Iterable[Path]:
        for folder, _, names in os.walk(self.path):
            yield from (Path(folder) / name for name in names if name != MANIFEST)

    def _entry(self, path: Path, known: Mapping[str, str]) -> dict[str, Any]:
        relative = path.relative_to(self.path).as_posix()
        sha256 = known.get(relative) or file_sha256(path)
        return {"path": relative, "size_bytes": path.stat().st_size, "sha256": sha256}


class Raw(Artifact):
    """A data set as its authors publish it."""

    __slots__ = ()
    kind: ClassVar[str] = "raw"


class Shards(Artifact):
    """WebDataset tars, an index beside each, and their counts in the manifest."""

    __slots__ = ()
    kind: ClassVar[str] = "shards"


class Tokenizer(Artifact):
    """A tokenizer in the layout of Hugging Face transformers."""

    __slots__ = ()
    kind: ClassVar[str] = "tokenizer"


class Checkpoint(Artifact):
    """Weights that load on any number of ranks, with the family and the model config in the facts."""

    __slots__ = ()
    kind: ClassVar[str] = "checkpoint"


class Report(Artifact):
    """Scores (metrics.json), predictions and pictures of an evaluation."""

    __slots__ = ()
    kind: ClassVar[str] = "report"


class Export(Artifact):
    """A model as the ecosystem loads it: safetensors, config.json, tokenizer, model card."""

    __slots__ = ()
    kind: ClassVar[str] = "export"


def write_json(path: Path, value: Any) -> None:
    """Writes JSON by rename."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


def write_text(path: Path, text: str) -> None:
    """Writes text by rename, so that a killed process leaves the old file or the new one, never half of one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_replaced(path: Path) -> str:
    """Reads a file that another host may replace by rename meanwhile: to network file systems ours is stale then."""
    for _ in range(STALE_TRIES):
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return path.read_text(encoding="utf-8")


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(files: list[dict[str, Any]]) -> str:
    lines = [f"{entry['path']} {entry['size_bytes']} {entry['sha256']}\n" for entry in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
