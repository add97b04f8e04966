"""Reads everything the report shows from a run folder; what cannot be read is left out, never invented."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.artifacts import Artifact, Report
from orchestrator.errors import InputError
from orchestrator.journal import read_events
from orchestrator.local import settle
from orchestrator.records import record
from orchestrator.status import read_status

Points = tuple[tuple[float, float], ...]


@record
class StageView:
    """What is shown of one stage."""

    name: str
    key: str  # of stages.STAGES
    state: str
    reason: str
    status: Mapping[str, Any]  # its entry in `orch status --json`
    document: Mapping[str, Any]  # stage.json
    parents: tuple[str, ...]  # stages of this run whose outputs it reads
    outputs: Mapping[str, Mapping[str, Any]]  # output -> manifest, of those that are complete
    curves: Mapping[str, Points]  # metric -> (step, value), a step that was computed again counts once
    restarts: tuple[float, ...]  # the steps from which later attempts went on


@record
class Scores:
    """One evaluation."""

    stage: str
    directory: Path
    metrics: Mapping[str, Any]


@record
class RunView:
    """What is shown of a run."""

    directory: Path
    status: Mapping[str, Any]
    stages: tuple[StageView, ...]
    scores: tuple[Scores, ...]
    recipe: str  # the text of recipe.yaml
    code: Mapping[str, Any]  # COMMIT of the code snapshot


def gather(directory: Path) -> RunView:
    """Reads a run folder, finished or not."""
    if not directory.is_dir():
        raise InputError(f"{directory} is not a run folder")
    settle(directory)
    shown = read_status(directory)
    documents = {entry["name"]: read_json(directory / entry["name"] / "stage.json") for entry in shown["stages"]}
    stages = tuple(_stage(directory, entry, documents) for entry in shown["stages"])
    return RunView(
        directory=directory,
        status=shown,
        stages=stages,
        scores=tuple(scores for stage in stages for scores in _scores(stage)),
        recipe=_text(directory / "recipe.yaml"),
        code=read_json(directory / "code" / "COMMIT"),
    )


def _stage(directory: Path, entry: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]) -> StageView:
    document = documents[entry["name"]]
    complete = {}
    for name, output in document.get("outputs", {}).items():
        manifest = _manifest(Path(output["path"]))
        if manifest.get("fingerprint") == document.get("fingerprint"):
            complete[name] = manifest
    attempts = entry["attempts"]
    return StageView(
        name=entry["name"],
        key=entry["stage"],
        state=entry["state"],
        reason=entry["reason"],
        status=entry,
        document=document,
        parents=_parents(document, documents),
        outputs=complete,
        curves=read_curves(directory / entry["name"]),
        restarts=tuple(float(attempt["from_step"]) for attempt in attempts[1:] if attempt["from_step"]),
    )


def _parents(document: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Names the stages that wrote this one's inputs, in the order of the recipe."""
    writers = {
        output["path"]: name for name, other in documents.items() for output in other.get("outputs", {}).values()
    }
    paths = {artifact["path"] for _, artifact in inputs_of(document)}
    found = {writers[path] for path in paths if path in writers} | set(document.get("after", ()))
    return tuple(name for name in documents if name in found)


def inputs_of(document: Mapping[str, Any]) -> list[tuple[str, Mapping[str, str]]]:
    """Lists the input artifacts of a stage by dotted name."""
    found: list[tuple[str, Mapping[str, str]]] = []
    for name, given in document.get("inputs", {}).items():
        if not given:
            continue
        if isinstance(given.get("path"), str):
            found.append((name, given))
        else:
            found += [(f"{name}.{key}", artifact) for key, artifact in given.items()]
    return found


def read_curves(directory: Path) -> Mapping[str, Points]:
    """Reads every metric of a stage's journal; where a step was computed twice, the later value stands."""
    curves: dict[str, dict[float, float]] = {}
    for event in read_events(directory):
        if event.get("event") == "loss":
            curves.setdefault("loss", {})[float(event["step"])] = _number(event.get("value"))
        elif event.get("event") == "metrics":
            for name, value in event.get("values", {}).items():
                if name != "loss" or event["step"] not in curves.get("loss", {}):
                    curves.setdefault(name, {})[float(event["step"])] = _number(value)
    return {name: tuple(sorted(points.items())) for name, points in curves.items()}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _scores(stage: StageView) -> list[Scores]:
    found = []
    for name, manifest in stage.outputs.items():
        if manifest["kind"] == Report.kind:
            folder = Path(stage.document["outputs"][name]["path"])
            metrics = read_json(folder / "metrics.json")
            if metrics.get("benchmarks"):
                found.append(Scores(stage=stage.name, directory=folder, metrics=metrics))
    return found


def _manifest(path: Path) -> Mapping[str, Any]:
    try:
        return Artifact(path).manifest() or {}
    except (OSError, ValueError):
        return {}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON mapping; empty if there is none."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plain if isinstance(plain, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
