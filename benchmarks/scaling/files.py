"""Control files of many stages, and verdicts over many ranks."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import claims
from benchmarks.bare import PREPARE
from benchmarks.claims import Claim
from benchmarks.command import REPOSITORY
from benchmarks.handover import write_chain
from orchestrator.exits import Exit, write_exit
from orchestrator.verdict import verdict

VERDICT_BAR_S = 10.0
SLACK = 1.15  # what "no worse than linear" may be off by: clocks and file systems are no exact things


def control_files(folder: Path, sizes: Sequence[int]) -> list[Claim]:
    """Prepares run folders of several numbers of stages; compares files, bytes and the time of `orch status`."""
    folder.mkdir(parents=True)
    small, large = min(sizes), max(sizes)
    found = {size: _prepared(folder, size) for size in (small, large)}
    claimed = []
    for place, what in enumerate(("control files", "bytes of control files", "seconds of orch status --json")):
        few, many = found[small][place], found[large][place]
        note = f"measured: {few:,.6g} at {small} stages, {many:,.6g} at {large}; {many / large:,.3g} a stage"
        claimed.append(_linear(f"{what}, {large} stages against {small}", many / few, large / small, note))
    return claimed


def verdicts(folder: Path, sizes: Sequence[int]) -> list[Claim]:
    """Leaves the records of attempts of which every rank fell, and times the verdicts on them."""
    small, large = min(sizes), max(sizes)
    seconds = {}
    for size in (small, large):
        place = folder / str(size)
        place.mkdir(parents=True)
        for rank in range(size):
            write_exit(place, Exit(rank=rank, node=f"n{rank // 8}", time=float(rank), signal="SIGKILL", step=7))
            (place / f"rank_{rank}.log").write_text(f"rank {rank} INFO: step 7\n", encoding="utf-8")
        began = time.perf_counter()
        verdict(place, size=size, nodes=[f"n{rank // 8}" for rank in range(size)])
        seconds[size] = time.perf_counter() - began
    few, many = seconds[small], seconds[large]
    note = f"measured on made-up records: {few:.2f} s with {small} fallen ranks, {many:.2f} s with {large}"
    return [
        _linear(f"seconds of a verdict, {large} ranks against {small}", many / few, large / small, note),
        claims.claim(
            f"verdict on {large:,} fallen ranks", [many], None, "s", peer_name=None, bar=VERDICT_BAR_S,
            direction="at most", note=note,
        ),
    ]  # fmt: skip


def _linear(name: str, ratio: float, allowed: float, note: str) -> Claim:
    return claims.claim(
        name, [ratio], None, "times", peer_name=None, bar=allowed * SLACK, direction="at most", note=note
    )


def _prepared(folder: Path, size: int) -> tuple[float, float, float]:
    """Prepares a run; returns its files and bytes without the code, and the seconds of a status."""
    name = f"stages_{size}"
    recipe = write_chain(folder / f"{name}.yaml", name, size)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    prepare = [sys.executable, "-c", PREPARE, str(recipe), str(REPOSITORY)]
    subprocess.run(prepare, check=True, capture_output=True, cwd=folder, env=environment, timeout=120)
    run = folder / "runs" / name
    kept = [path for path in run.rglob("*") if path.is_file() and "code" not in path.relative_to(run).parts]
    began = time.perf_counter()
    status = [sys.executable, "-m", "orchestrator.cli", "status", str(run), "--json"]
    subprocess.run(status, check=True, capture_output=True, cwd=folder, env=environment, timeout=120)
    return len(kept), sum(path.stat().st_size for path in kept), time.perf_counter() - began
