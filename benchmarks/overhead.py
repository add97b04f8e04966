"""Measures what `fit` costs: time a step, and start-up, against a DeepSpeed loop written by hand.

python -m benchmarks.overhead                 # a table, about four minutes
python -m benchmarks.overhead --json --quick  # about a minute

Two gloo ranks, the same model under the same ZeRO-3 and the same batches. Steps take turns within the same processes:
by hand, and by `fit` with logging, heartbeat, guard and journal on. Start-up is from the start of the processes to the
end of the first step: `orchestrator.worker` on a prepared run, and a script.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks import claims
from benchmarks.claims import Claim

REPOSITORY = Path(__file__).parents[1]
RANKS, STAGE = 2, "train"
STEP_BAR, START_BAR = 1.02, 1.1
PREPARE = """
import sys
from pathlib import Path
from orchestrator.plan import plan_recipe
from orchestrator.run import Run
from orchestrator.session import catalog
plan = plan_recipe(Path(sys.argv[1]), [], catalog())
with Run(plan.directory).lock("benchmark"):
    Run(plan.directory).prepare(plan, Path(sys.argv[2]))
print(plan.directory.resolve())
"""


class _Size(NamedTuple):
    rounds: int
    steps: int  # a round and side
    starts: int


_FULL, _QUICK = _Size(rounds=11, steps=15, starts=5), _Size(rounds=5, steps=8, starts=2)


def main() -> None:
    """Measures and prints, as a table or as JSON."""
    parser = claims.command_line(__doc__)
    options = parser.parse_args()
    size, machine = _QUICK if options.quick else _FULL, claims.machine()
    with tempfile.TemporaryDirectory(prefix="orch-overhead-", ignore_cleanup_errors=True) as folder:
        found = [_steps(Path(folder), size), _starts(Path(folder), size)]
    claims.show(found, machine, claims.versions(), as_json=options.json)


def _steps(folder: Path, size: _Size) -> Claim:
    place = folder / "steps"
    command = [
        sys.executable,
        "-m",
        "benchmarks.overhead_ranks",
        "turns",
        str(place),
        str(size.rounds),
        str(size.steps),
    ]
    _run(command, place)
    ours, bare = _slowest(place, "fit_s"), _slowest(place, "bare_s")
    note = f"medians of {size.rounds} rounds of {size.steps} steps each way; logging, heartbeat, guard and journal on"
    return claims.claim(
        "time of a step", ours, bare, "s", peer_name="DeepSpeed by hand", bar=STEP_BAR, direction="at most", note=note
    )


def _slowest(place: Path, key: str) -> list[float]:
    reports = [json.loads((place / f"rank_{rank}.json").read_text(encoding="utf-8")) for rank in range(RANKS)]
    return [max(times) for times in zip(*(report[key] for report in reports), strict=True)]


def _starts(folder: Path, size: _Size) -> Claim:
    ours: list[float] = []
    bare: list[float] = []
    for turn in range(size.starts + 1):
        for side in ("ours", "bare") if turn % 2 else ("bare", "ours"):
            place = folder / f"{side}_{turn}"
            took_s = _start_ours(place) if side == "ours" else _start_bare(place)
            if turn:  # the first round warms the caches
                (ours if side == "ours" else bare).append(took_s)
    note = "process start to the end of the first step; the worker of a prepared run, and a script"
    return claims.claim(
        "start-up to the first step", ours, bare, "s", peer_name="DeepSpeed by hand", bar=START_BAR,
        direction="at most", note=note,
    )  # fmt: skip


def _start_bare(place: Path) -> float:
    began = time.time()
    _run([sys.executable, "-m", "benchmarks.overhead_ranks", "bare", str(place)], place)
    report = json.loads((place / "rank_0.json").read_text(encoding="utf-8"))
    return float(report["first_step"]) - began


def _start_ours(place: Path) -> float:
    run = _prepared(place)
    began = time.time()
    _run([sys.executable, "-P", "-m", "orchestrator.worker", str(run), STAGE], place / "ranks")
    events = map(json.loads, (run / STAGE / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    return next(float(event["time"]) for event in events if event["event"] == "loss") - began


def _prepared(place: Path) -> Path:
    place.mkdir(parents=True)
    recipe = place / "recipe.yaml"
    stages = {STAGE: {"stage": "words", "config": {"steps": 1}, "resources": {"tasks_per_node": RANKS}}}
    recipe.write_text(yaml.safe_dump({"name": "start", "tracking": {"uri": None}, "stages": stages}), encoding="utf-8")
    command = [sys.executable, "-c", PREPARE, str(recipe), str(REPOSITORY)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=place, env=_environment(), timeout=120
    )
    return Path(done.stdout.strip().splitlines()[-1])


def _environment() -> dict[str, str]:
    return {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "ORCH_CATALOG": "benchmarks.overhead_ranks",
        "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": str(RANKS), "TORCHDYNAMO_DISABLE": "1",
    }  # fmt: skip


def _run(command: Sequence[str], place: Path) -> None:
    """Runs the ranks of a command, each with a log in `place`; raises where one fails."""
    place.mkdir(parents=True, exist_ok=True)
    _say(" ".join(command[2:5]))
    processes = []
    for rank in range(RANKS):
        more: Mapping[str, Any] = {
            "RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(RANKS),
            "ORCH_RENDEZVOUS": f"file://{place / 'meeting'}",
        }  # fmt: skip
        with (place / f"rank_{rank}.log").open("wb") as log:
            processes.append(subprocess.Popen(command, env={**_environment(), **more}, stdout=log, stderr=log))
    codes = [process.wait(timeout=600) for process in processes]
    if any(codes):
        last = (place / f"rank_{codes.index(max(codes))}.log").read_text(encoding="utf-8", errors="replace")[-2000:]
        raise subprocess.SubprocessError(f"ranks ended with {codes}: {last}")


def _say(words: str) -> None:
    print(f"{words} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
