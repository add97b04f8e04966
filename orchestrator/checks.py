"""What can be wrong with a recipe: one small function a way. None of them starts or writes anything."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.artifacts import MANIFEST, Artifact
from orchestrator.errors import Fault
from orchestrator.recipe import NAME
from orchestrator.records import PATH
from orchestrator.typed import dotted

RESERVED = frozenset({"archive", "code", "lock", "logs"})  # what a run folder holds beside its stages
SHOWN = 5  # damaged files named, of an artifact that may have thousands


def check_trackers(names: Sequence[str]) -> list[Fault]:
    """Refuses to tell somebody whose package is not installed: extras of the same name bring it."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return [
        Fault(key="tracking.also", message=f"{name} is not installed here: pip install 'orch[{name}]'")
        for name in missing
    ]


def check_name(name: str) -> list[Fault]:
    """Refuses stage names that are no folder names, or that the run folder needs for itself."""
    key = f"stages.{name}"
    if not NAME.fullmatch(name):
        return [Fault(key=key, message="stage names are letters, digits, '-' and '_': they name folders")]
    if name in RESERVED:
        return [
            Fault(key=key, message=f"the run folder keeps this name for itself; taken: {', '.join(sorted(RESERVED))}")
        ]
    return []


def check_paths(config: Any, key: str) -> list[Fault]:
    """Names every path of a typed config that does not exist, or is a file where a folder is needed."""
    return [
        fault
        for where, path, wanted in _paths(config, key, None)
        if (fault := _check_path(path, wanted, where)) is not None
    ]


def check_external(artifact: Artifact, key: str) -> list[Fault]:
    """Says why an artifact from elsewhere cannot be used: not there, not complete, of another kind, damaged."""
    path = artifact.path
    try:
        if path.is_dir():
            problems = _problems(artifact)
        else:
            wanted = f"is a file, needs the folder of a {artifact.kind}"
            problems = [f"{path} {wanted if path.exists() else 'does not exist'}"]
    except (ValueError, KeyError, TypeError) as error:
        problems = [f"{path}/{MANIFEST} is not a manifest: {type(error).__name__}: {error}"]
    except OSError as error:
        problems = [f"{path} cannot be read: {error.strerror or error}"]
    more = [f"{path}: {len(problems) - SHOWN} more files differ"] if len(problems) > SHOWN else []
    return [Fault(key=key, message=message) for message in [*problems[:SHOWN], *more]]


def check_cycles(after: Mapping[str, tuple[str, ...]]) -> list[Fault]:
    """Names every circle of stages that wait for each other, each once."""
    faults: list[Fault] = []
    waits = {name: set(before) for name, before in after.items()}
    while True:
        try:
            TopologicalSorter(waits).prepare()
        except CycleError as error:
            circle: list[str] = error.args[1]  # each feeds the next; the last is the first again
            faults.append(Fault(key=f"stages.{circle[0]}", message="waits for itself: " + " -> ".join(circle)))
            waits[circle[1]].discard(circle[0])
        else:
            return faults


def in_order(after: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Orders stages so that each comes after what it waits for, and otherwise as the recipe lists them."""
    ordered: dict[str, None] = {}
    for start in after:
        waiting = [start]
        while waiting:
            name = waiting[-1]
            missing = [before for before in after[name] if before not in ordered]
            if missing:
                waiting.append(missing[0])
            else:
                ordered[waiting.pop()] = None
    return list(ordered)


def _problems(artifact: Artifact) -> list[str]:
    """Lists how an existing folder is not the artifact it should be."""
    manifest = artifact.manifest()
    if manifest is None:  # raw data is what its authors publish: it has a manifest only where a stage of ours wrote it
        return (
            []
            if artifact.kind == "raw"
            else [f"{artifact.path} holds no complete {artifact.kind}: no {MANIFEST} in it"]
        )
    if manifest["kind"] != artifact.kind:
        return [f"{artifact.path} is {manifest['kind']}, needs {artifact.kind}"]
    if not isinstance(manifest["digest"], str):
        raise TypeError("its digest is no text")
    outside = [entry["path"] for entry in manifest["files"] if _leaves(entry["path"])]
    return [f"{artifact.path}/{MANIFEST} names {path!r}, outside its folder" for path in outside] or artifact.damage()


def _leaves(path: str) -> bool:
    """Tells whether a path from a manifest points out of its folder."""
    return PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts


def _paths(value: Any, key: str, wanted: str | None) -> Iterator[tuple[str, Path, str | None]]:
    """Yields every path in a typed value with its dotted key and what it must be."""
    if isinstance(value, Path):
        yield key, value, wanted
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _paths(getattr(value, field.name), dotted(key, field.name), field.metadata.get(PATH))
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _paths(item, dotted(key, str(name)), wanted)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _paths(item, dotted(key, str(position)), wanted)


def _check_path(path: Path, wanted: str | None, key: str) -> Fault | None:
    try:
        if not path.exists():
            return Fault(key=key, message=f"{path} does not exist")
        if wanted == "folder" and not path.is_dir():
            return Fault(key=key, message=f"{path} is a file, needs a folder")
        if wanted == "file" and not path.is_file():
            return Fault(key=key, message=f"{path} is a folder, needs a file")
    except OSError as error:
        return Fault(key=key, message=f"{path} cannot be read: {error.strerror or error}")
    return None
