"""Measures ranks that run different modules under ZeRO-3: what stock DeepSpeed does, what ours does, what that costs.

python -m benchmarks.symmetry                 # a table, about four minutes
python -m benchmarks.symmetry --json --quick  # about a minute

Two gloo ranks train a transformer with a mask decoder that only the first rank has masks for. Overhead is the time of
a step on batches that are even, with and without guard and balance, in turns within the same processes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import claims
from benchmarks.claims import Claim

REPOSITORY = Path(__file__).parents[1]
RANKS = 2
STOCK_WAITS_S = 30.0  # its process group's time-out here; 30 minutes by default
GRADIENT_BAR, OVERHEAD_BAR, NAMED_BAR_S = 1e-6, 1.02, 5.0


class _Size(NamedTuple):
    rounds: int
    steps: int  # a round and side


_FULL, _QUICK = _Size(rounds=25, steps=4), _Size(rounds=5, steps=2)


def main() -> None:
    """Measures and prints, as a table or as JSON."""
    parser = claims.command_line(__doc__)
    options = parser.parse_args()
    size, machine = _QUICK if options.quick else _FULL, claims.machine()
    with tempfile.TemporaryDirectory(prefix="orch-symmetry-") as folder:
        found = _measured(Path(folder), size)
    claims.show(found, machine, claims.versions(), as_json=options.json)


def _measured(folder: Path, size: _Size) -> list[Claim]:
    alone = _run(folder, "alone", 1)[0]
    ours = _run(folder, "ours", RANKS)
    stock = _run(folder, "stock", RANKS)
    named = _run(folder, "named", RANKS)
    costs = [_run(folder, order, RANKS, str(size.rounds), str(size.steps))[0] for order in ("bare_first", "bare_last")]
    return [
        _gradients(alone, ours, stock),
        _named(named, stock),
        claims.claim(
            "time of an even step with guard and balance", [time for one in costs for time in one["guarded_s"]],
            [time for one in costs for time in one["bare_s"]], "s", peer_name="the same loop without", bar=OVERHEAD_BAR,
            direction="at most", note="slowest of two ranks; half of the rounds with either model the first in memory",
        ),
    ]  # fmt: skip


def _gradients(alone: dict[str, Any], ours: Sequence[dict[str, Any]], stock: Sequence[dict[str, Any]]) -> Claim:
    apart = max(
        abs(mine - theirs)
        for name, values in alone["gradients"].items()
        for mine, theirs in zip(ours[0]["gradients"][name], values, strict=True)
    )
    note = f"largest difference over {len(alone['gradients'])} tensors; stock: {_ending(stock)}"
    return claims.claim(
        "gradients of an uneven step against one process", [apart], None, "", peer_name=None, bar=GRADIENT_BAR,
        direction="at most", note=note,
    )  # fmt: skip


def _named(named: Sequence[dict[str, Any]], stock: Sequence[dict[str, Any]]) -> Claim:
    told = [one["found"] for one in named if "found" in one]
    after_s = [one["after_s"] for one in named if "found" in one] or [float("inf")]
    note = f"{told[0] if told else 'NOT NAMED'}; stock: {_ending(stock)}"
    return claims.claim(
        "until a difference that nobody declared is named", after_s, None, "s", peer_name=None, bar=NAMED_BAR_S,
        direction="at most", note=note,
    )  # fmt: skip


def _ending(results: Sequence[dict[str, Any]]) -> str:
    return "; ".join(f"rank {rank} {one['ended']}" for rank, one in enumerate(results))


def _run(folder: Path, mode: str, ranks: int, *arguments: str) -> list[dict[str, Any]]:
    """Runs the ranks of a mode; returns what each reported, and how it ended."""
    claims.say(f"{mode} ...")
    place = folder / mode
    place.mkdir()
    processes = []
    for rank in range(ranks):
        environment = {
            **os.environ, "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1",
            "ORCH_RENDEZVOUS": f"file://{place / 'rendezvous'}", "PYTHONPATH": str(REPOSITORY),
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.symmetry_ranks", mode, str(place), *arguments]
        with (place / f"rank_{rank}.log").open("wb") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    began = time.monotonic()
    results = []
    for rank, process in enumerate(processes):
        code = process.wait(300)
        report = place / f"rank_{rank}.json"
        told = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
        last = (place / f"rank_{rank}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        after_s = time.monotonic() - began
        ended = "ends well" if code == 0 else f"ends with {code} after {after_s:.0f} s: {' '.join(last)[:160]}"
        results.append({**told, "ended": ended})
        if code != 0 and mode in {"alone", "ours", "costs"}:
            raise subprocess.SubprocessError(f"{mode}: rank {rank} {ended}")
    return results


if __name__ == "__main__":
    main()
