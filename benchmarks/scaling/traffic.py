"""What each rank does to the run's folder, step by step: counted by strace between two steps without a checkpoint."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from benchmarks import claims
from benchmarks.bare import PREPARE
from benchmarks.claims import Claim
from benchmarks.command import REPOSITORY

LARGE = 4096
STEP_S = 0.05
CALLS = "trace=%file,write,writev,pwrite64,fsync,fdatasync,ftruncate,read,pread64"
LINE = re.compile(r"^(?:\d+\s+)?(\d+\.\d+)\s+(\w+)\((.*)$")


class _Rank(NamedTuple):
    calls: float  # to the run's folder, a step
    written: float  # bytes, a step
    log_start: int  # bytes of its log before the first of the steps
    log_step: float  # bytes of its log, a step


def traffic_per_step(folder: Path, sizes: Sequence[int], steps: int) -> list[Claim]:
    """Trains with several numbers of ranks and compares what they do to the run's folder."""
    if shutil.which("strace") is None:
        name = "requests to the shared file system in a step"
        return [claims.cannot(name, [0.0], "calls", peer_name="strace", bar=None, why="strace is not installed")]
    measured = {size: _measured(folder / str(size), size, steps) for size in sizes}
    first = {size: ranks[0] for size, ranks in measured.items()}
    others = [rank for ranks in measured.values() for rank in ranks[1:]]
    calls = [sum(rank.calls for rank in ranks) for ranks in measured.values()]
    by_size = ", ".join(f"{size}: {count:.1f}" for size, count in zip(measured, calls, strict=True))
    how = f"measured with {', '.join(map(str, sizes))} ranks over {steps} steps by strace; reading samples not included"
    largest = measured[max(sizes)]
    start, per_step = max(rank.log_start for rank in others), first[max(sizes)].log_step
    day_mb = (LARGE * start + 24 * 3600 * per_step) / 1e6
    in_large = (
        f"computed: {LARGE:,} x {start:,} bytes at the start and {per_step:.0f} bytes a step of the first rank, "
        "both measured, with log_every: 10"
    )
    return [
        _ours("calls to the run's folder a step, ranks but the first", max(r.calls for r in others), "calls", 0.0, how),
        _ours(
            "calls to the run's folder a step, growth with ranks", max(calls) / min(calls), "times", 1.2,
            f"measured, all ranks together, by number of ranks: {by_size}",
        ),
        _ours(
            "bytes to the run's folder a step, all ranks", sum(rank.written for rank in largest), "bytes", None,
            f"measured with {max(sizes)} ranks; the same for {LARGE:,}, as only the first rank writes",
        ),
        _ours("log of a rank but the first, in a step", max(r.log_step for r in others), "bytes", 0.0, "measured"),
        _ours(f"logs of {LARGE:,} ranks in a day, a step a second", day_mb, "MB", None, in_large),
    ]  # fmt: skip


def _ours(name: str, value: float, unit: str, bar: float | None, note: str) -> Claim:
    return claims.claim(name, [value], None, unit, peer_name=None, bar=bar, direction="at most", note=note)


def _measured(folder: Path, size: int, steps: int) -> list[_Rank]:
    run = _prepared(folder, size, steps)
    logs = run / "train" / "logs" / "attempt_1"
    traces = [folder / f"strace_{rank}" for rank in range(size)]
    ranks = []
    for rank, trace in enumerate(traces):
        environment = {
            **os.environ, "PYTHONPATH": str(REPOSITORY), "RANK": str(rank), "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank), "ORCH_RENDEZVOUS": f"file://{folder}/meeting", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-P", "-m", "orchestrator.worker", str(run), "train"]
        watched = ["strace", "-f", "-ttt", "-y", "-s", "0", "-e", CALLS, "-o", str(trace), *command]
        with (logs / f"rank_{rank}.log").open("wb") as log:
            ranks.append(subprocess.Popen(watched, env=environment, stdout=log, stderr=log, cwd=folder))
    if any(process.wait(timeout=300) for process in ranks):
        raise subprocess.SubprocessError(f"a rank failed: see {logs}")
    since, until, counted = _window(run, steps)
    return [_rank(trace, logs / f"rank_{rank}.log", run, (since, until), counted) for rank, trace in enumerate(traces)]


def _prepared(folder: Path, size: int, steps: int) -> Path:
    folder.mkdir(parents=True)
    recipe = folder / "recipe.yaml"
    train = {
        "steps": steps, "global_batch": 12, "workers": 0, "save": {"every_steps": steps}, "optim": {"lr": 0.05},
        "engine": {"name": "torch", "precision": "fp32"},
    }  # fmt: skip
    stages = {
        "data": {"stage": "rehearsal_data"},
        "train": {
            "stage": "rehearsal_training", "inputs": {"shards": {"points": "data.shards"}},
            "config": {"step_s": STEP_S, "train": train}, "resources": {"tasks_per_node": size},
        },
    }  # fmt: skip
    recipe.write_text(yaml.safe_dump({"name": "traffic", "tracking": {"uri": None}, "stages": stages}))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    words = [[sys.executable, "-c", PREPARE, str(recipe), str(REPOSITORY)]]
    run = folder / "runs" / "traffic"
    words.append([sys.executable, "-P", "-m", "orchestrator.worker", str(run), "data"])
    for command in words:
        subprocess.run(command, check=True, capture_output=True, cwd=folder, env=environment, timeout=120)
    return run


def _window(run: Path, steps: int) -> tuple[float, float, int]:
    """Returns the times of an early and a late step, before the only checkpoint, and the number of steps between."""
    events = map(json.loads, (run / "train" / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    times = {event["step"]: event["time"] for event in events if event["event"] == "loss"}
    early, late = 2, steps - 2
    return times[early], times[late], late - early


def _rank(trace: Path, log: Path, run: Path, window: tuple[float, float], steps: int) -> _Rank:
    calls = written = logged = before = 0
    for line in trace.read_text(encoding="utf-8", errors="replace").splitlines():
        match = LINE.match(line)
        if match is None or str(run) not in match[3] or str(run / "data") in match[3]:
            continue  # samples are read from wherever they lie
        size = _written(match)
        before += size if str(log) in match[3] and float(match[1]) < window[0] else 0
        if window[0] <= float(match[1]) < window[1]:
            calls, written = calls + 1, written + size
            logged += size if str(log) in match[3] else 0
    return _Rank(calls=calls / steps, written=written / steps, log_start=before, log_step=logged / steps)


def _written(match: "re.Match[str]") -> int:
    """Returns the bytes that a traced call has written."""
    result = re.search(r"= (\d+)\s*$", match[3])
    return int(result[1]) if result and match[2] in {"write", "writev", "pwrite64"} else 0
