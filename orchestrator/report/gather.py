"""Reads everything the report shows from a run folder; what cannot be read is left out, never invented."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.artifacts import Artifact, Report
from orchestrator.errors import InputError
from orchestrator.goodput import Spending, spending_or_none
from orchestrator.journal import read_events
from orchestrator.local import settle
from orchestrator.records import record
from orchestrator.status import read_status

Points = tuple[tuple[float, float], ...]


@record
class Outside:
    """An artifact that a stage reads and that comes from outside of the run."""

    role: str  # the input, dotted
    kind: str
    path: str


@record
class StageView:
    """What is shown of one stage."""

    name: str
    key: str  # of stages.STAGES
    state: str
    reason: str
    status: Mapping[str, Any]  # its entry in `orch status --json`
    document: Mapping[str, Any]  # stage.json
    parents: tuple[str, ...]  # stages of this run whose outputs it reads, or that it waits for
    roles: Mapping[str, str]  # parent -> what it gives, of those whose outputs it reads
    outside: tuple[Outside, ...]
    outputs: Mapping[str, Mapping[str, Any]]  # output -> manifest, of those that are complete
    curves: Mapping[str, Points]  # metric -> (step, value), a step that was computed again counts once
    restarts: tuple[float, ...]  # the steps from which later attempts went on
    stragglers: tuple[Mapping[str, Any], ...]  # ranks that were reported as slow: events of the journal


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
    diff: str  # what the code had besides its commit
    spent: Spending | None  # None where it cannot be added up


def gather(directory: Path) -> RunView:
    """Reads a run folder, finished or not."""
    if not directory.is_dir():
        raise InputError(f"{directory} is not a run folder")
    settle(directory)
    shown = read_status(directory)
    reader = _Reader(directory, shown)
    stages = tuple(reader.stage(entry) for entry in shown["stages"])
    return RunView(
        directory=directory,
        status=shown,
        stages=stages,
        scores=tuple(scores for stage in stages for scores in _scores(directory, stage)),
        recipe=_text(directory / "recipe.yaml"),
        code=read_json(directory / "code" / "COMMIT"),
        diff=_text(directory / "code" / "changes.diff"),
        spent=spending_or_none(directory),
    )


class _Reader:
    """Reads stages, which are known to each other by what they write."""

    def __init__(self, directory: Path, shown: Mapping[str, Any]) -> None:
        self._directory = directory
        self._documents = {
            entry["name"]: read_json(directory / entry["name"] / "stage.json") for entry in shown["stages"]
        }
        self._writers = {
            output["path"]: name
            for name, document in self._documents.items()
            for output in document.get("outputs", {}).values()
        }

    def stage(self, entry: Mapping[str, Any]) -> StageView:
        document, attempts = self._documents[entry["name"]], entry["attempts"]
        inputs = inputs_of(document)
        roles: dict[str, str] = {}
        for name, given in inputs:
            if writer := self._writers.get(given["path"]):
                roles[writer] = f"{roles[writer]}, {name}" if writer in roles else name
        found = {*roles, *document.get("after", ())}
        parents = tuple(name for name in self._documents if name in found)
        events = list(read_events(self._directory / entry["name"]))
        return StageView(
            name=entry["name"],
            key=entry["stage"],
            state=entry["state"],
            reason=entry["reason"],
            status=entry,
            document=document,
            parents=parents,
            roles=roles,
            outside=tuple(
                Outside(role=name, kind=given["kind"], path=given["path"])
                for name, given in inputs
                if given["path"] not in self._writers
            ),
            outputs=self._outputs(entry["name"]),
            curves=curves_of(events),
            restarts=tuple(float(attempt["from_step"]) for attempt in attempts[1:] if attempt["from_step"]),
            stragglers=tuple(event for event in events if event.get("event") == "straggler"),
        )

    def _outputs(self, name: str) -> Mapping[str, Mapping[str, Any]]:
        document = self._documents[name]
        complete = {}
        for output, described in document.get("outputs", {}).items():
            manifest = _manifest(place_of(self._directory, name, described))
            if manifest.get("fingerprint") == document.get("fingerprint"):
                complete[output] = manifest
        return complete


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


def place_of(run: Path, stage: str, output: Mapping[str, Any]) -> Path:
    """Returns where an output lies: in its stage's folder, wherever the run was copied to, whatever its path says."""
    return run / stage / Path(output["path"]).name


def read_curves(directory: Path) -> Mapping[str, Points]:
    """Reads every metric of a stage's journal."""
    return curves_of(read_events(directory))


def curves_of(events: Iterable[Mapping[str, Any]]) -> Mapping[str, Points]:
    """Collects every metric by name; where a step was computed twice, the later value stands."""
    curves: dict[str, dict[float, float]] = {}
    for event in events:
        if event.get("event") == "loss":
            curves.setdefault("loss", {})[_number(event.get("step"))] = _number(event.get("value"))
        elif event.get("event") == "metrics" and isinstance(event.get("values"), dict):
            step = _number(event.get("step"))
            for name, value in event["values"].items():
                if name != "loss" or step not in curves.get("loss", {}):
                    curves.setdefault(name, {})[step] = _number(value)
    return {name: tuple(sorted(points.items())) for name, points in curves.items()}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _scores(run: Path, stage: StageView) -> list[Scores]:
    found = []
    for name, manifest in stage.outputs.items():
        if manifest["kind"] == Report.kind:
            folder = place_of(run, stage.name, stage.document["outputs"][name])
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
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
