"""Reads what stages left behind (stage.json, inputs.json, manifests), and trusts none of it.

Whatever is absent, broken or of another type than expected counts as not there: a run folder may be half written, from
an older version, or hostile.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.artifacts import MANIFEST
from orchestrator.history import INPUTS, STAGE
from orchestrator.records import record

LARGEST_BYTES = 256_000_000  # of a JSON file; a manifest of a million files has fewer
TRAINING = "training"  # the kind of a checkpoint in the middle of training, which is no artifact


@record
class Made:
    """A complete artifact, as its manifest describes it."""

    path: Path
    kind: str
    digest: str
    fingerprint: str
    facts: Mapping[str, Any]


@record
class Read:
    """What a stage read, or is to read."""

    role: str  # the input, dotted
    kind: str
    path: str  # as recorded; empty where only the content is known
    digest: str  # of what was read; empty where nobody noted it
    origin: str = ""  # "FINGERPRINT:output" of the stage that was to write it


@record
class Output:
    """What a stage writes: where it lies, wherever its folder was moved."""

    name: str
    kind: str
    path: Path
    made: Made | None  # None while it is not complete, or is gone


@record
class StagePapers:
    """A stage's folder, in a run or in its archive."""

    folder: Path
    run: Path
    name: str
    key: str  # of stages.STAGES
    fingerprint: str
    archived: bool
    steps: int | None
    inputs: tuple[Read, ...]
    outputs: tuple[Output, ...]
    raw: Mapping[str, str]  # files and folders outside of any artifact -> cheap digest
    code: str  # a digest of the code it ran; empty where nobody noted it
    moved_from: str = ""  # the run folder it was planned in, where that is another one


def read_made(path: Path) -> Made | None:
    """Reads the manifest of an artifact; None where there is none that makes sense."""
    manifest = read_mapping(path / MANIFEST)
    kind = text_of(manifest, "kind")
    if not kind or kind == TRAINING:
        return None
    digest, fingerprint = text_of(manifest, "digest"), text_of(manifest, "fingerprint")
    return Made(path=path, kind=kind, digest=digest, fingerprint=fingerprint, facts=mapping_of(manifest, "facts"))


def read_stage(folder: Path, run: Path, *, archived: bool) -> StagePapers | None:
    """Reads the folder of a stage; None where it is none."""
    document = read_mapping(folder / STAGE)
    if not document:
        return None
    fingerprint, identity = text_of(document, "fingerprint"), mapping_of(document, "identity")
    outputs = tuple(_outputs(folder, mapping_of(document, "outputs"), fingerprint))
    code = mapping_of(identity, "code")
    planned = {str(Path(text_of(one, "path")).parent.parent) for one in mapping_of(document, "outputs").values()
               if text_of(one, "path")}  # fmt: skip
    return StagePapers(
        folder=folder,
        run=run,
        name=text_of(document, "name") or folder.name,
        key=text_of(document, "stage"),
        fingerprint=fingerprint,
        archived=archived,
        steps=whole_of(document, "steps"),
        inputs=tuple(_inputs(folder, document, identity, outputs)),
        outputs=outputs,
        raw=_raw(identity, document),
        code=hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest() if code else "",
        moved_from=next((place for place in sorted(planned) if _is_elsewhere(place, run)), ""),
    )


def bare_stage(made: Made) -> StagePapers:
    """Returns what an artifact's own manifest tells of the stage that made it, where that stage's folder is gone."""
    digests = mapping_of(made.facts, "inputs")
    inputs = (Read(role=role, kind="", path="", digest=text_of(digests, role)) for role in digests)
    return StagePapers(
        folder=made.path, run=made.path.parent, name=text_of(made.facts, "stage") or "unknown",
        key=text_of(made.facts, "stage"), fingerprint=made.fingerprint, archived=False, steps=None,
        inputs=tuple(read for read in inputs if read.digest), raw={}, code="",
        outputs=(Output(name=made.path.name, kind=made.kind, path=made.path, made=made),),
    )  # fmt: skip


def real(path: str | Path) -> Path | None:
    """Returns where a path leads, all links followed; None for what can be no absolute path."""
    try:
        return Path(os.path.realpath(path)) if Path(path).is_absolute() else None
    except (OSError, ValueError):  # ValueError: a null byte in it
        return None


def read_mapping(path: Path) -> Mapping[str, Any]:
    """Reads a JSON mapping; empty if there is none, or one that no honest stage writes."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST_BYTES:  # a pipe would keep us waiting for ever
            return {}
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def mapping_of(mapping: Any, key: str) -> Mapping[str, Any]:
    """Returns the mapping under a key, or an empty one."""
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def text_of(mapping: Any, key: str) -> str:
    """Returns the text under a key, or an empty one."""
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    return value if isinstance(value, str) else ""


def whole_of(mapping: Any, key: str) -> int | None:
    """Returns the whole number under a key, if there is one."""
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _outputs(folder: Path, described: Mapping[str, Any], fingerprint: str) -> Iterator[Output]:
    for name, entry in described.items():
        last = Path(text_of(entry, "path")).name  # in this folder, whatever its path says: runs are copied and moved
        if last in ("", ".", ".."):
            continue
        made = read_made(folder / last)
        mine = made is not None and made.fingerprint == fingerprint
        yield Output(name=name, kind=text_of(entry, "kind"), path=folder / last, made=made if mine else None)


def _inputs(
    folder: Path, document: Mapping[str, Any], identity: Mapping[str, Any], outputs: tuple[Output, ...]
) -> Iterator[Read]:
    """Yields what a stage read. What its finished work says goes before what the latest attempt noted."""
    told = [mapping_of(output.made.facts, "inputs") for output in outputs if output.made is not None]
    noted, origins = read_mapping(folder / INPUTS), mapping_of(identity, "inputs")
    for role, entry in _flat(mapping_of(document, "inputs")):
        digests = (text_of(source, role) for source in (*told, noted))
        origin = text_of(origins, role)
        yield Read(
            role=role, kind=text_of(entry, "kind"), path=text_of(entry, "path"),
            digest=next((digest for digest in digests if digest), ""), origin=origin if ":" in origin else "",
        )  # fmt: skip


def _flat(inputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, given in inputs.items():
        if text_of(given, "path"):
            yield name, given
        elif isinstance(given, Mapping):
            yield from ((f"{name}.{item}", entry) for item, entry in given.items() if text_of(entry, "path"))


def _raw(identity: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, str]:
    """Returns the files outside of any artifact that a stage depends on, those below a folder of its config as one."""
    watched = {path: str(digest) for path, digest in mapping_of(identity, "outside").items()
               if Path(path).is_absolute()}  # fmt: skip
    folders = [value for value in _leaves(mapping_of(document, "config")) if Path(value).is_absolute()]
    found: dict[str, list[str]] = {}
    for path, digest in sorted(watched.items()):
        above = [folder for folder in folders if path == folder or path.startswith(folder.rstrip("/") + "/")]
        found.setdefault(max(above, key=len, default=path), []).append(f"{path} {digest}\n")
    return {
        path: hashlib.sha256("".join(lines).encode("utf-8", "replace")).hexdigest() for path, lines in found.items()
    }


def _leaves(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, str):
            yield one


def _is_elsewhere(planned: str, run: Path) -> bool:
    place = real(planned)
    return place is not None and place != run
