"""Answers what a run is doing, and closes what a vanished supervisor left open."""

import itertools
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError, SurroundingsError
from orchestrator.lock import user_name
from orchestrator.progress import read_progress
from orchestrator.run import Run
from orchestrator.state import (
    Ending,
    Launch,
    StageState,
    close_attempt,
    outputs_ready,
    read_launch,
    read_plain_stage,
    read_state,
    read_tracking,
    write_launch,
    write_state,
)
from orchestrator.supervisor import ask_to_cancel

log = logging.getLogger(__name__)


def status(directory: Path) -> dict[str, Any]:
    """Returns what `orch status --json` prints (interface.md), after closing what a dead supervisor left open."""
    settle(directory)
    launch = read_launch(directory)
    entries = [] if launch is None else [dict(entry) for entry in launch.stages]
    stages = [_stage_status(directory, entry) for entry in entries]
    tracking = read_tracking(directory)
    return {
        "run": str(directory),
        "recipe": directory.name if launch is None else launch.recipe,
        "state": _run_state(launch, [stage["state"] for stage in stages]),
        "launcher": None if launch is None else launch.launcher,
        "host": None if launch is None else launch.host,
        "pid": None if launch is None else launch.pid,
        "started": None if launch is None else launch.started,
        "ended": None if launch is None else launch.ended,
        "tracking_uri": None if launch is None else launch.tracking.get("uri"),
        "mlflow_run_id": tracking.get("mlflow_run_id"),
        "report": str(directory / "report.html") if (directory / "report.html").is_file() else None,
        "notes": [] if launch is None else list(launch.notes),
        "goodput": _goodput(stages),
        "stages": stages,
    }


def stage_status(directory: Path, name: str) -> dict[str, Any]:
    """Returns one stage's part of the status."""
    stages: dict[str, dict[str, Any]] = {stage["name"]: stage for stage in status(directory)["stages"]}
    if name not in stages:
        raise InputError(f"{directory} has no stage {name!r}; it has {', '.join(stages) or 'none'}")
    return stages[name]


def cancel_run(directory: Path, stage: str | None) -> str:
    """Asks whoever works on a run to stop, and says what happens now."""
    if stage is not None:
        stage_status(directory, stage)
    shown = status(directory)
    if Run(directory).holder() is None:
        return f"nothing to cancel: nobody works on {directory}, its state is {shown['state']}"
    ask_to_cancel(directory, stage, user_name())
    return f"asked {shown['host']} to cancel {stage or directory}; what runs there saves first, if it can"


def known_runs(runs: Path) -> list[Path]:
    """Lists the folders of runs, the latest launch first."""
    launches = [(read_launch(path.parent), path.parent) for path in runs.glob("*/launch.json")]
    known = [(launch.started, path) for launch, path in launches if launch is not None]
    return [path for _, path in sorted(known, reverse=True)]


def latest_run(runs: Path) -> Path:
    """Returns the folder of the run that was launched last."""
    known = known_runs(runs)
    if not known:
        raise InputError(f"there is no run in {runs.resolve()}; start one with: orch launch RECIPE")
    return known[0]


def settle(directory: Path) -> None:
    """Closes the launch and the attempts of a supervisor that is gone (killed, or its machine went down)."""
    launch, run = read_launch(directory), Run(directory)
    if launch is None or launch.ended is not None or run.holder() is not None:
        return
    try:
        with run.lock("orch status"):
            launch = read_launch(directory)  # again: it may have ended before the lock was ours
            if launch is not None and launch.ended is None:
                _close(directory, launch)
    except (SurroundingsError, OSError) as error:  # somebody was faster, we may only look, or the disk is full
        log.info("%s is not closed by us: %s", directory, error)


def _close(directory: Path, launch: Launch) -> None:
    gone = f"the supervisor process {launch.pid} on {launch.host} is gone"
    for entry in launch.stages:
        folder = directory / entry["name"]
        before = read_state(folder)
        if before.state not in {"running", "queued"}:
            continue
        if outputs_ready(read_plain_stage(folder)):
            close_attempt(folder, Ending(state="done"))
        elif before.state == "running":
            close_attempt(folder, Ending(state="failed", cause="unknown", detail=gone))
        else:
            write_state(folder, StageState(state="waiting", attempts=before.attempts))
    write_launch(directory, replace(launch, ended=time.time(), notes=(*launch.notes, gone)))


def _run_state(launch: Launch | None, states: list[str]) -> str:
    if launch is None:
        return "waiting"
    for state in ("running", "cancelled", "failed"):
        if state in states:
            return state
    if all(state in {"done", "reused"} for state in states):
        return "done"
    if launch.ended is None:
        return "queued" if "queued" in states else "running"
    return "failed"


def _stage_status(directory: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    folder = directory / entry["name"]
    plain, state = read_plain_stage(folder), read_state(folder)
    ready = outputs_ready(plain)
    shown: str = state.state
    if ready and shown in {"waiting", "done"}:
        shown = "reused" if entry.get("action") == "reuse" else "done"
    elif not ready and shown == "done":
        shown = "waiting"  # its output was removed or changed by hand
    progress = _current_progress(folder, state)
    counts_steps = progress.get("unit") == "step"
    steps = plain.get("steps") if plain.get("steps") is not None else (progress.get("total") if counts_steps else None)
    return {
        "name": entry["name"],
        "stage": plain["stage"],
        "state": shown,
        "reason": entry.get("reason", ""),
        "step": steps if shown in {"done", "reused"} else (progress.get("done") if counts_steps else None),
        "steps": steps,
        "eta_s": progress.get("eta_s") if shown == "running" else None,
        "progress": progress,
        "fingerprint": plain["fingerprint"],
        "mlflow_run_id": read_tracking(folder).get("mlflow_run_id"),
        "outputs": {name: output["path"] for name, output in plain["outputs"].items()},
        "attempts": [{**asdict(attempt), "nodes": list(attempt.nodes)} for attempt in state.attempts],
    }


def _current_progress(folder: Path, state: StageState) -> dict[str, Any]:
    progress = read_progress(folder) or {}
    if state.attempts and progress.get("time", 0.0) < state.attempts[-1].started:
        return {}  # of an earlier attempt
    return progress


def _goodput(stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Compares the steps that were kept with the steps that were computed, over all attempts."""
    computed = lost = 0
    busy_s = 0.0
    for stage in stages:
        attempts: list[dict[str, Any]] = stage["attempts"]
        busy_s += sum((attempt["ended"] or time.time()) - attempt["started"] for attempt in attempts)
        steps = [
            (a["from_step"], a["to_step"]) for a in attempts if a["from_step"] is not None and a["to_step"] is not None
        ]
        computed += sum(to - since for since, to in steps)
        lost += sum(max(0, to - again) for (_, to), (again, _) in itertools.pairwise(steps))
    share = (computed - lost) / computed if computed else None
    return {"busy_s": round(busy_s, 1), "computed_steps": computed, "lost_steps": lost, "share": share}
