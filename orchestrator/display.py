"""Puts plans, states and endings into tables and lines for people; JSON is for programs."""

import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.forecast import Forecast, start_in_words
from orchestrator.logs import log_to_blame
from orchestrator.plan import Plan, PlannedStage
from orchestrator.registration import Promotion
from orchestrator.state import read_plain_stage
from orchestrator.training.memory.telling import COSTS, costs_in_words

if TYPE_CHECKING:
    from orchestrator.training.memory.estimate import Estimate

PIPE_WIDTH = 160  # nobody wraps a pipe; a table must not be cut for a terminal that is not there
COLORS = {
    "reuse": "cyan", "reused": "cyan", "done": "green", "resume": "yellow", "run": "yellow", "running": "yellow",
    "queued": "blue", "failed": "red", "cancelled": "red",
}  # fmt: skip
TAIL_LINES = 15


def make_console(*, stderr: bool = False) -> Console:
    """Makes the console: as wide as the terminal, or wide enough for a table in a pipe."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=PIPE_WIDTH)


def plan_table(
    plan: Plan, forecasts: Mapping[str, Forecast] | None = None, estimates: "Mapping[str, Estimate] | None" = None
) -> Table:
    """Shows per stage what will be done about it, and why; when it would begin, where somebody was asked.

    And what it needs and costs, where at least one stage describes itself.
    """
    table = Table("stage", "action", "why", "steps", "resources", box=None, pad_edge=False, header_style="bold")
    if estimates:
        for title in COSTS:
            table.add_column(title, justify="right")
    if forecasts:
        table.add_column("starts")
    for stage in plan.stages:
        action = f"resume at step {stage.from_step}" if stage.action == "resume" else stage.action
        steps = "" if stage.steps is None else str(stage.steps)
        costs = costs_in_words(estimates.get(stage.name)) if estimates else []
        starts = [start_in_words(forecasts.get(stage.name))] if forecasts else []
        resources = resources_in_words(stage)
        table.add_row(stage.name, colored(action, stage.action), Text(why(stage)), steps, resources, *costs, *starts)
    return table


def plan_footer(plan: Plan) -> str:
    """Says what the plan table means by code."""
    modules: set[str] = set()
    for stage in plan.stages:
        modules |= {part.partition(":")[0] for part in stage.identity["code"]}
    return (
        f"code = the statements of {len(modules)} modules; comments and docstrings do not count; `--json` lists them\n"
        f"run folder: {plan.directory}"
    )


def why(stage: PlannedStage) -> str:
    """Names the first change, and how many more there are; without one, the plan's own words."""
    if not stage.changes:
        return stage.reason
    first, more = stage.changes[0], len(stage.changes) - 1
    return f"{first.key}: {_short(first.was)} → {_short(first.is_)}" + (f" (+{more} more)" if more else "")


def resources_in_words(stage: PlannedStage) -> str:
    """Puts what a stage asks for in a few words."""
    asked = stage.resources
    tasks = asked.tasks_per_node or max(1, asked.gpus_per_node)
    words = [f"{asked.nodes} nodes"] if asked.nodes > 1 else []
    words.append(
        f"{asked.gpus_per_node} GPU" + "s" * (asked.gpus_per_node > 1)
        if asked.gpus_per_node
        else f"{tasks} process" + "es" * (tasks > 1)
    )
    return ", each ".join(words)


def status_table(status: Mapping[str, Any]) -> Table:
    """Shows per stage how far it is."""
    table = Table(
        "stage", "state", "progress", "values", "rate", "ETA", "elapsed", "attempts", box=None, pad_edge=False
    )
    for stage in status["stages"]:
        attempts, progress = stage["attempts"], stage["progress"]
        running = stage["state"] == "running"
        table.add_row(
            stage["name"], colored(stage["state"], stage["state"]), progress_in_words(stage),
            values_in_words(progress), rate_in_words(progress) if running else "",
            duration(stage["eta_s"]), duration(_elapsed_s(stage)), str(len(attempts) or ""),
        )  # fmt: skip
    return table


def runs_table(statuses: list[dict[str, Any]]) -> Table:
    """Shows one line a run."""
    table = Table("run", "state", "stages done", "started", box=None, pad_edge=False, header_style="bold")
    for status in statuses:
        done = sum(stage["state"] in {"done", "reused"} for stage in status["stages"])
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(status["started"])) if status["started"] else ""
        state = colored(status["state"], status["state"])
        table.add_row(status["run"], state, f"{done} of {len(status['stages'])}", started)
    return table


def progress_in_words(stage: Mapping[str, Any]) -> str:
    """Reads `120/400 steps`."""
    if stage["step"] is not None:
        return f"{stage['step']}/{stage['steps']} steps" if stage["steps"] else f"{stage['step']} steps"
    progress = stage["progress"]
    if not progress:
        return ""
    total = f"/{progress['total']}" if progress.get("total") else ""
    return f"{progress['done']}{total} {progress['unit']}s"


def values_in_words(progress: Mapping[str, Any]) -> str:
    """Reads `loss 1.234`, and up to two values more."""
    values: Mapping[str, float] = progress.get("values") or {}
    order = sorted(values, key=lambda name: name != "loss")
    return "  ".join(f"{name} {values[name]:.4g}" for name in order[:3])


def rate_in_words(progress: Mapping[str, Any]) -> str:
    """Reads `3.2 steps/s`."""
    rate = progress.get("rate_per_s")
    return f"{rate:.3g} {progress['unit']}s/s" if rate else ""


def duration(seconds: float | None) -> str:
    """Reads `1h02m`, `3m05s` or `42s`."""
    if seconds is None:
        return ""
    minutes, left = divmod(int(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes}m{left:02d}s" if minutes else f"{left}s"


def lasted_s(attempt: Mapping[str, Any]) -> float:
    """Returns how long an attempt has lasted; another host's clock may be ahead of ours, but none lasts less than 0."""
    return max(0.0, float((attempt["ended"] or time.time()) - attempt["started"]))


def job_in_words(attempt: Mapping[str, Any]) -> str:
    """Reads `job 12 on n1, n2`; on this machine, `process 4711`."""
    if attempt["launcher"] == "local":
        return f"process {attempt['job_id']}"
    return f"job {attempt['job_id']}" + (f" on {_few(attempt['nodes'])}" if attempt["nodes"] else "")


def queue_in_words(stage: Mapping[str, Any]) -> str:
    """Reads `job 12: other jobs are before it (Priority); begins about 15:04:05`; empty if nobody says anything."""
    waiting = stage["waiting"]
    if waiting is None:
        return ""
    start = waiting["estimated_start"]
    begins = "" if start is None else f"; begins about {moment(start)}"
    return f"job {waiting['job_id']}: {waiting['reason'] or waiting['state']}{begins}"


def silence_in_words(status: Mapping[str, Any]) -> str:
    """Reads `as of 15:04:05; Slurm does not answer: ...`; empty if whoever was asked has answered."""
    if status["silence"] is None:
        return ""
    return f"as of {moment(status['as_of'])}; {status['silence']}" if status["as_of"] else status["silence"]


def moment(seconds: float) -> str:
    """Reads `15:04:05`, with the day where it is not today's."""
    there, today = time.localtime(seconds), time.localtime()
    return time.strftime("%H:%M:%S" if there[:3] == today[:3] else "%Y-%m-%d %H:%M:%S", there)


def standing_lines(status: Mapping[str, Any]) -> Iterator[str]:
    """Says of every stage that waits or runs which job it is, where it runs, and what has happened so far."""
    if silence := silence_in_words(status):
        yield silence
    for stage in status["stages"]:
        if words := queue_in_words(stage):
            yield f"{stage['name']}: {words}"
        if stage["state"] in {"queued", "running"}:
            yield from _attempt_lines(stage)
        if stage["state"] == "running" and stage["attempts"][-1]["launcher"] != "local":
            yield f"{stage['name']}: {job_in_words(stage['attempts'][-1])}"


def colored(text: str, state: str) -> Text:
    """Gives a word the color of its state."""
    return Text(text, style=COLORS.get(state, ""))


def typable(program: str) -> str:
    """Returns how to type a program of our environment: its name where the shell finds it, else where it lies."""
    beside = Path(sys.executable).parent / program
    if shutil.which(program) is not None or not beside.is_file():
        return program
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))


def ending_lines(status: Mapping[str, Any]) -> Iterator[str]:
    """Says how a run ended and what to look at next."""
    states = [stage["state"] for stage in status["stages"]]
    reused = states.count("reused")
    if status["state"] == "done":
        yield f"all {len(states)} stages are done" + (f", {reused} of them reused" if reused else "")
        yield from _next_steps(status)
    if status["registered"]:
        yield f"registry: {Promotion(**status['registered'])}"
    for stage in status["stages"]:
        if stage["state"] in {"failed", "cancelled"} and stage["attempts"]:
            yield from _failure_lines(Path(status["run"]), stage)
    yield from (f"note: {note}" for note in status["notes"])
    if status["state"] in {"failed", "cancelled"}:
        yield f"go on:    {typable('orch')} resume {shlex.quote(status['run'])}"


def _next_steps(status: Mapping[str, Any]) -> Iterator[str]:
    run = Path(status["run"])
    if status["report"]:
        yield f"report:   {status['report']}"
    for stage in status["stages"]:
        for output in read_plain_stage(run / stage["name"])["outputs"].values():
            path = Path(output["path"])
            if output["kind"] == "report" and (path / "pictures").is_dir():
                yield f"pictures: {path / 'pictures'}"
            if output["kind"] == "export":
                yield f"try it:   {typable('orch')} predict {shlex.quote(str(path))} IMAGE --output answer.png"
    if status["tracking_uri"]:
        yield f"curves:   {typable('mlflow')} ui --backend-store-uri {shlex.quote(status['tracking_uri'])}"
    if "tensorboard" in status["tracking_also"]:
        yield f"curves:   {typable('tensorboard')} --logdir {shlex.quote(str(run))}"
    if offline := sorted(run.glob("*/wandb/offline-run-*")):
        folders = f"{shlex.quote(str(run))}/*/wandb/offline-run-*"
        yield f"curves:   {typable('wandb')} sync {folders}  ({len(offline)} of them)"


def _failure_lines(run: Path, stage: Mapping[str, Any]) -> Iterator[str]:
    yield from _attempt_lines(stage)
    path = log_to_blame(run, stage)
    if path is None:
        return
    if stage["state"] == "failed":
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        yield from (f"    {line[:400]}" for line in lines[-TAIL_LINES:])
    yield f"log:      {path}"


def _attempt_lines(stage: Mapping[str, Any]) -> Iterator[str]:
    """Says of every attempt that did not end well how it ended, what that is known from, and what was done about it."""
    bad = [attempt for attempt in stage["attempts"] if attempt["cause"] is not None]
    for attempt in bad:
        step = f" at step {attempt['to_step']}" if attempt["to_step"] is not None else ""
        lasted = duration(lasted_s(attempt))
        head = f"{stage['name']}: attempt {attempt['number']} ({job_in_words(attempt)})"
        yield f"{head} {attempt['state']} ({attempt['cause']}) after {lasted}{step}: {attempt['detail']}"
        yield from (f"    because: {evidence}" for evidence in attempt["evidence"])
        if attempt["decision"]:
            yield f"    so: {attempt['decision']}"


def _elapsed_s(stage: Mapping[str, Any]) -> float | None:
    if not stage["attempts"] or stage["state"] in {"reused", "waiting", "queued"}:
        return None
    return lasted_s(stage["attempts"][-1])


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]} and {len(names) - 2} more"


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
