"""What a run folder already holds of a stage: finished, begun, or the work of another plan."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from orchestrator.artifacts import MANIFEST, Artifact
from orchestrator.records import record

STAGE = "stage.json"
INPUTS = "inputs.json"
CHECKPOINTS = "checkpoints"
ARCHIVE = "archive"
SHORT = 12  # digits of a fingerprint that people see


@record
class Change:
    """One thing that makes a stage another stage than before."""

    key: str  # "config.train.optim.lr", "code: stages.glamm.decoder", "input model", "seed", "outside: root"
    was: str
    is_: str


@record
class Verdict:
    """What will be done about a stage, and why."""

    action: Literal["reuse", "resume", "run"]
    reason: str
    changes: tuple[Change, ...] = ()
    from_step: int | None = None
    found: Path | None = None  # the folder whose work is used


@record
class Parents:
    """What is known of a stage's inputs while planning: digests of what is there, and which stages run again."""

    digests: Mapping[str, str]  # input -> digest, of inputs that will not be written again
    again: Mapping[str, str]  # input -> the stage that will write it again


def judge(
    run_dir: Path,
    name: str,
    identity: Mapping[str, Any],
    fingerprint: str,
    outputs: Mapping[str, Artifact],
    parents: Parents,
    *,
    keeps_parts: bool,
) -> Verdict:
    """Decides whether a stage's work can be reused or resumed, from its folder and from the archive.

    `keeps_parts` is the stage's own word: it goes on with whatever is whole of what a dead attempt left.
    """
    here = run_dir / name
    verdicts = [
        _judge_folder(folder, fingerprint, outputs, parents, keeps_parts=keeps_parts)
        for folder in (here, *archived(run_dir, name, fingerprint))
        if _document(folder).get("fingerprint") == fingerprint
    ]
    if verdicts:
        best = max(
            verdicts, key=lambda verdict: (verdict.action != "run", verdict.action == "reuse", verdict.from_step or 0)
        )
        if best.action != "run" and best.found != here:
            return Verdict(action=best.action, reason=f"{best.reason}; comes back from the archive",
                           from_step=best.from_step, found=best.found)  # fmt: skip
        return best
    before = _document(here).get("identity")
    if not isinstance(before, dict):
        return Verdict(action="run", reason="has not run yet")
    changes = compare(before, identity, parents.again)
    return Verdict(action="run", reason=_summary(changes), changes=tuple(changes))


def archived(run_dir: Path, name: str, fingerprint: str) -> list[Path]:
    """Returns the folders in the archive that may hold work of this fingerprint."""
    folder = run_dir / ARCHIVE / name
    return sorted(folder.glob(f"{fingerprint[:SHORT]}*")) if folder.is_dir() else []


def last_checkpoint(directory: Path) -> int | None:
    """Returns the step of the last complete checkpoint in a stage's folder."""
    manifests = (directory / CHECKPOINTS).glob(f"step_*/{MANIFEST}")
    steps = [manifest.parent.name.removeprefix("step_") for manifest in manifests]
    return max((int(step) for step in steps if step.isdecimal()), default=None)


def compare(was: Mapping[str, Any], is_: Mapping[str, Any], again: Mapping[str, str]) -> list[Change]:
    """Lists what differs between two identities, in the order config, inputs, code, the rest."""
    changes = [Change(key=key, was=old, is_=new) for key, old, new in _differences(was, is_, "config", "config.")]
    for key, old, new in _differences(was, is_, "inputs", "input "):
        maker = again.get(key.removeprefix("input "))
        changes.append(Change(key=key, was=_short(old), is_=f"{maker} runs again" if maker else _short(new)))
    for section in ("code", "families", "outside"):
        found = _differences(was, is_, section, f"{section}: ")
        changes += [Change(key=key, was=_short(old), is_=_short(new)) for key, old, new in found]
    for key in ("stage", "target", "seed"):
        if was.get(key) != is_.get(key):
            changes.append(Change(key=key, was=_shown(was.get(key)), is_=_shown(is_.get(key))))
    return changes or [Change(key="config", was="the same values in another order", is_="as written now")]


def _judge_folder(
    folder: Path, fingerprint: str, outputs: Mapping[str, Artifact], parents: Parents, *, keeps_parts: bool
) -> Verdict:
    """Judges the work that a folder of the right fingerprint holds."""
    recorded = _read(folder / INPUTS)
    stale = [
        Change(key=f"input {name}", was=_short(str(recorded[name])), is_=_short(digest))
        for name, digest in parents.digests.items()
        if name in recorded and recorded[name] != digest
    ]
    if stale:
        names = ", ".join(change.key for change in stale)
        return Verdict(
            action="run", reason=f"{names} has other content than the one that was read", changes=tuple(stale)
        )
    problem = _unusable(folder, fingerprint, outputs)
    step = last_checkpoint(folder)
    if problem is None:
        makers = ", ".join(sorted(set(parents.again.values())))
        note = f"; {makers} runs again from the same recipe, which does not undo it" if makers else ""
        return Verdict(action="reuse", reason=f"done, nothing changed{note}", found=folder)
    if step is not None:
        return Verdict(action="resume", reason=f"{problem}; saved at step {step}", from_step=step, found=folder)
    left = "finished parts of it are kept" if keeps_parts else "no checkpoint was saved"
    return Verdict(action="run", reason=f"{problem}; {left}", found=folder)


def _unusable(folder: Path, fingerprint: str, outputs: Mapping[str, Artifact]) -> str | None:
    """Says why the outputs in a folder cannot be used as they are."""
    for name, output in outputs.items():
        artifact = type(output)(folder / name)
        try:
            if not artifact.ready():
                return f"{name} is not finished"
            if not artifact.ready(fingerprint):
                return f"{name} is the work of another fingerprint"
            damage = artifact.damage()
        except (ValueError, KeyError, TypeError):
            return f"the manifest of {name} cannot be read"
        if damage:
            return f"{name} is damaged: {damage[0]}"
    return None


def _differences(
    was: Mapping[str, Any], is_: Mapping[str, Any], section: str, prefix: str
) -> list[tuple[str, str, str]]:
    old, new = _flat(was.get(section, {})), _flat(is_.get(section, {}))
    keys = [*new, *(key for key in old if key not in new)]
    return [
        (prefix + key, _shown(old.get(key, ...)), _shown(new.get(key, ...)))
        for key in keys
        if old.get(key, ...) != new.get(key, ...)
    ]


def _flat(value: Any) -> dict[str, Any]:
    """Returns nested mappings as one, with dotted keys; names of modules are keys as they are."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            flat.update({f"{name}.{key}": inner for key, inner in _flat(item).items()})
        else:
            flat[str(name)] = item
    return flat


def _summary(changes: list[Change]) -> str:
    told = [f"{change.key}: {change.was} -> {change.is_}" for change in changes[:2]]
    return "; ".join([*told, f"and {len(changes) - 2} more changes"] if len(changes) > 2 else told)


def _shown(value: Any) -> str:
    if value is ...:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def _short(text: str) -> str:
    """Shortens a digest for people ("HEX" or "HEX:output")."""
    digest, colon, output = text.partition(":")
    is_digest = len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    return digest[:SHORT] + (f" {output}" if colon else "") if is_digest else text


def _document(folder: Path) -> dict[str, Any]:
    return _read(folder / STAGE)


def _read(path: Path) -> dict[str, Any]:
    """Reads a JSON mapping; an absent or broken file holds nothing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
