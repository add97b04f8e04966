"""What a run folder and Slurm tell of a run: the loss and the samples of every step, attempts, jobs, final weights."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.journal import read_events
from orchestrator.records import record
from orchestrator.state import Attempt, read_state
from slurm.devcluster import DevCluster
from slurm.drill.recipe import CHECK, TRAIN

_FIELDS = ("JobID", "JobName", "State", "Submit", "Start", "End")


@record
class Step:
    """One execution of a step; a step that was lost is executed again."""

    number: int
    loss: float
    keys: tuple[str, ...]  # of the samples that all ranks together saw, in rank order
    attempt: int
    time: float


@record
class Trace:
    """What became of the training stage of a run."""

    steps: tuple[Step, ...]  # as executed
    attempts: tuple[Attempt, ...]
    damage: tuple[dict[str, Any], ...]  # samples that were named as lost
    result: dict[str, Any] | None  # of the check stage

    def final(self) -> dict[int, Step]:
        """Returns the last execution of every step: the one that counts."""
        return {step.number: step for step in self.steps}

    def lost_steps(self) -> int:
        """Counts the executions that were in vain."""
        return len(self.steps) - len(self.final())

    def back_after(self, moment: float) -> float | None:
        """Returns the seconds until an attempt that began after the moment has finished a step."""
        late = {attempt.number for attempt in self.attempts if attempt.started >= moment}
        return next((step.time - moment for step in self.steps if step.attempt in late), None)


def read_trace(run: Path, stage: str = TRAIN) -> Trace:
    """Reads the journal and the attempts of a training stage, and the result of its run."""
    return Trace(
        steps=tuple(_steps(read_events(run / stage))),
        attempts=read_state(run / stage).attempts,
        damage=tuple(s for e in read_events(run / stage) if e.get("event") == "damage" for s in e["samples"]),
        result=_result(run / CHECK / "report" / "result.json"),
    )


def _steps(events: Iterable[dict[str, Any]]) -> Iterable[Step]:
    keys: list[str] = []
    attempt = 0
    for event in events:
        if event.get("event") == "attempt":
            keys, attempt = [], int(event["number"])  # what a killed attempt had begun counts for nothing
        elif event.get("event") == "samples":
            keys += event["keys"]
        elif event.get("event") == "loss":
            yield Step(number=event["step"], loss=event["value"], keys=tuple(keys), attempt=attempt, time=event["time"])
            keys = []


def _result(path: Path) -> dict[str, Any] | None:
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result


@record
class Execution:
    """One execution of a job, as accounting has it; a requeued job has several."""

    job_id: str
    name: str
    state: str
    submit: str  # ISO, or a word such as Unknown; of a requeued job: when it was requeued
    start: str
    end: str


def executions(cluster: DevCluster, run_name: str) -> Sequence[Execution]:
    """Asks accounting for every execution of every job of a run."""
    command = ["sacct", "-X", "-D", "-n", "-P", "-S", "now-2days", "-o", ",".join(_FIELDS)]
    lines = cluster.run(command).stdout.splitlines()
    rows = [dict(zip(_FIELDS, line.split("|"), strict=True)) for line in lines if line]
    ours = [row for row in rows if row["JobName"].startswith(f"orch-{run_name}-")]
    words = {
        "job_id": "JobID",
        "name": "JobName",
        **{field: field.title() for field in ("state", "submit", "start", "end")},
    }
    return [Execution(**{field: row[column] for field, column in words.items()}) for row in ours]
