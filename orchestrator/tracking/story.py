"""What MLflow should say of a run and of its stages, read from the run's folder. Knows no MLflow."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from orchestrator.artifacts import Artifact
from orchestrator.records import record
from orchestrator.redaction import Screen, hide
from orchestrator.state import STAGE, Attempt, Launch, StageState, read_plain_stage, read_state
from orchestrator.tracking.journals import accepted_name
from orchestrator.vigil import ALERTS, read_alerts

Status = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]

PARAM_LENGTH, TAG_LENGTH = 6000, 5000
KILLING_CAUSES = frozenset({"preempted", "timeout", "node_failure", "cancelled"})
KILLING_WORDS = re.compile(r"\bkilled\b|\bis gone\b|SIG(KILL|TERM|INT|HUP)")


@record
class Link:
    """An artifact that a stage reads or writes."""

    name: str  # "model", "shards.grounded"
    kind: str
    path: Path

    @property
    def title(self) -> str:
        """Names it across stages: the folder of the stage that wrote it, and its own."""
        return f"{self.path.parent.name}.{self.path.name}"


@record
class Story:
    """What one MLflow run should say; metrics come from the journal in `directory`."""

    directory: Path
    name: str
    status: Status
    started_ms: int
    ended_ms: int | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    inputs: tuple[Link, ...]
    outputs: tuple[Link, ...]
    fingerprint: str
    steps: int | None
    stage: str
    files: tuple[str, ...]  # paths below the folder that belong to the run whenever they exist
    settled: bool  # the work of an earlier launch: what it was told of code and place stays
    run: Path | None = None  # the run folder; None for what lies in its archive
    attempts: int = 0  # so far; of a recipe, those of all its stages once it has ended


def recipe_story(run: Path, launch: Launch) -> Story:
    """Tells of the run as a whole: the parent."""
    tags = {
        **_common_tags(run, launch),
        "mlflow.source.name": hide(launch.recipe),
        "orch.kind": "recipe",
        "orch.name": run.name,
        "orch.stages": ", ".join(str(entry["name"]) for entry in launch.stages),
        "orch.notes": _cut(hide("\n".join(launch.notes)), TAG_LENGTH),
        **_all_alerts(run, launch),
    }
    status = _recipe_status(run, launch)
    names = [str(entry["name"]) for entry in launch.stages] if launch.ended is not None else []
    return Story(
        directory=run,
        name=run.name,
        status=status,
        started_ms=_ms(launch.started),
        ended_ms=_ms(launch.ended) if launch.ended is not None and status != "RUNNING" else None,
        params={},
        tags=tags,
        inputs=(),
        outputs=(),
        fingerprint="",
        steps=None,
        stage="",
        files=("recipe.yaml", "report.html"),
        settled=False,
        run=run,
        attempts=sum(len(read_state(run / name).attempts) for name in names),
    )


def stage_stories(run: Path, launch: Launch) -> Iterator[Story]:
    """Tells of every stage that was ever attempted, in the order of the recipe, then of archived ones."""
    for entry in launch.stages:
        directory = run / str(entry["name"])
        if (directory / STAGE).is_file():
            yield from stage_story(run, launch, directory, archived=False)
    for path in sorted(run.glob(f"archive/*/*/{STAGE}")):
        yield from stage_story(run, launch, path.parent, archived=True)


def stage_story(run: Path, launch: Launch, directory: Path, *, archived: bool) -> Iterator[Story]:
    """Tells of one stage; of none that was never attempted."""
    plain, state = read_plain_stage(directory), read_state(directory)
    if not state.attempts:
        return
    last = state.attempts[-1]
    status = _stage_status(state)
    # an archived stage was moved, and where its inputs lay there may be others by now
    inputs = () if archived else tuple(_links("", plain["inputs"]))
    outputs = tuple(
        Link(name=name, kind=output["kind"], path=directory / Path(output["path"]).name)
        for name, output in plain["outputs"].items()
    )
    yield Story(
        directory=directory,
        name=str(plain["name"]),
        status=status,
        started_ms=_ms(state.attempts[0].started),
        ended_ms=_ms(last.ended) if last.ended is not None and status not in {"RUNNING", "SCHEDULED"} else None,
        params={**params_of(plain["config"]), "seed": str(plain["seed"])},
        tags={
            **_common_tags(run, launch),
            **_stage_tags(plain, state, inputs, outputs),
            **_alert_tags(directory),
        },
        inputs=inputs,
        outputs=outputs if state.state == "done" else (),
        fingerprint=str(plain["fingerprint"]),
        steps=plain.get("steps"),
        stage=str(plain["stage"]),
        files=(ALERTS,),
        settled=archived or last.started < launch.started,
        run=None if archived else run,
        attempts=len(state.attempts),
    )


def params_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Flattens nested values to dotted names and texts that MLflow takes; hides what is named like a secret."""
    return dict(_flat("", Screen().plain(values)))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), inner)
        return
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    yield accepted_name(prefix), _cut(text, PARAM_LENGTH)


def _links(prefix: str, inputs: Mapping[str, Any]) -> Iterator[Link]:
    for name, value in inputs.items():
        dotted = f"{prefix}.{name}" if prefix else name
        if isinstance(value, Mapping) and "path" in value and "kind" in value:
            yield Link(name=dotted, kind=str(value["kind"]), path=Path(value["path"]))
        elif isinstance(value, Mapping):
            yield from _links(dotted, value)


def _stage_status(state: StageState) -> Status:
    if state.state == "running":
        return "RUNNING"
    if state.state == "done":
        return "FINISHED"
    if state.state == "cancelled":
        return "KILLED"
    if state.state == "failed":
        return "KILLED" if _was_killed(state.attempts[-1]) else "FAILED"
    return "SCHEDULED"


def _was_killed(attempt: Attempt) -> bool:
    if attempt.cause == "unknown":
        return KILLING_WORDS.search(attempt.detail) is not None
    return attempt.cause in KILLING_CAUSES


def _recipe_status(run: Path, launch: Launch) -> Status:
    if launch.ended is None:
        return "RUNNING"
    statuses: set[Status] = set()
    for entry in launch.stages:
        state = read_state(run / str(entry["name"]))
        if state.attempts:
            statuses.add(_stage_status(state))
        elif entry.get("action") != "reuse":
            statuses.add("SCHEDULED")  # its turn never came
    if "FAILED" in statuses:
        return "FAILED"
    return "KILLED" if statuses - {"FINISHED"} else "FINISHED"


def _common_tags(run: Path, launch: Launch) -> dict[str, str]:
    code = _commit(run)
    return {
        "mlflow.user": launch.user,
        "mlflow.source.type": "LOCAL" if launch.launcher == "local" else "JOB",
        "mlflow.source.git.commit": str(code.get("commit") or ""),
        "orch.recipe": launch.recipe,
        "orch.run": str(run.resolve()),
        "orch.commit": str(code.get("commit") or ""),
        "orch.dirty": str(bool(code.get("dirty"))).lower(),
        "orch.launcher": launch.launcher,
    }


def _stage_tags(
    plain: Mapping[str, Any], state: StageState, inputs: tuple[Link, ...], outputs: tuple[Link, ...]
) -> dict[str, str]:
    last = state.attempts[-1]
    tags = {
        "orch.kind": "stage",
        "orch.name": str(plain["name"]),
        "orch.stage": str(plain["stage"]),
        "orch.fingerprint": str(plain["fingerprint"]),
        "orch.after": ", ".join(plain["after"]),
        "orch.state": state.state,
        "orch.attempts": str(len(state.attempts)),
        "orch.cause": last.cause or "",
        "orch.detail": _cut(hide(last.detail), TAG_LENGTH),
        "orch.evidence": _cut(hide("\n".join(last.evidence)), TAG_LENGTH),
        "orch.decision": _cut(hide(last.decision), TAG_LENGTH),
        "orch.nodes": _cut(", ".join(last.nodes), TAG_LENGTH),
        "orch.job_id": last.job_id,
    }
    for attempt in state.attempts:
        tags[f"orch.attempt.{attempt.number}"] = _cut(hide(_in_a_line(attempt)), TAG_LENGTH)
    for direction, links in (("input", inputs), ("output", outputs)):
        for link in links:
            tags[accepted_name(f"orch.{direction}.{link.name}")] = str(link.path)
            digest = Artifact(link.path).digest()
            if digest:
                tags[accepted_name(f"orch.{direction}.{link.name}.digest")] = digest
    return tags


def _alert_tags(directory: Path) -> dict[str, str]:
    """Says which rules of the recipe were broken, and of each how often and what was told last."""
    begun = [told for told in read_alerts(directory) if told.get("state") == "begun"]
    last = {str(told["rule"]): told for told in begun}
    tags = {"orch.alerts": ", ".join(sorted(last))} if last else {}
    for rule, told in last.items():
        times = sum(str(one["rule"]) == rule for one in begun)
        often = f"{times} times, the last: " if times > 1 else ""
        tags[f"orch.alert.{rule}"] = _cut(f"{often}attempt {told['attempt']}: {told['text']}", TAG_LENGTH)
    return tags


def _all_alerts(run: Path, launch: Launch) -> dict[str, str]:
    """Says which rules were broken in which stages, on the recipe's run."""
    names = [str(entry["name"]) for entry in launch.stages]
    broken = [f"{name}: {rules}" for name in names if (rules := _alert_tags(run / name).get("orch.alerts"))]
    return {"orch.alerts": _cut("; ".join(broken), TAG_LENGTH)} if broken else {}


def _in_a_line(attempt: Attempt) -> str:
    words: list[str] = [attempt.state]
    if attempt.cause:
        words.append(f"({attempt.cause}: {attempt.detail})" if attempt.detail else f"({attempt.cause})")
    if attempt.from_step is not None and attempt.to_step is not None:
        words.append(f"steps {attempt.from_step} to {attempt.to_step}")
    if attempt.ended is not None:
        words.append(f"{attempt.ended - attempt.started:.0f} s")
    if attempt.decision:
        words.append(attempt.decision)
    return " ".join(words)


def _commit(run: Path) -> dict[str, Any]:
    try:
        plain = json.loads((run / "code" / "COMMIT").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plain if isinstance(plain, dict) else {}


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
