"""Cell e: opening 10^9 samples in 10^5 tars, and making an index."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.claims import Claim, claim
from benchmarks.streaming.tars import write_manifest_only
from orchestrator.artifacts import Shards
from orchestrator.data.index import build_index

SAMPLES, TARS = 10**9, 10**5
MEMORY_BAR_MB, INDEX_BAR = 200.0, 100_000.0

_OPEN = """
import json, sys, time
from pathlib import Path
start = time.perf_counter()
from orchestrator.data.order import Order
from orchestrator.data.reader import ShardSet
imported = time.perf_counter()
shards = ShardSet(Path(sys.argv[1]))
opened = time.perf_counter()
order = Order(0, {"a": len(shards)}, {}, 4096)
draws = order.samples_of(len(shards) * 9 // 10 // 4096)
places = [shards.locate(draw.number) for draw in draws]
drawn = time.perf_counter()
lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
memory = {line[0]: int(line[1]) / 1024 for line in lines if line[0] in ("VmHWM:", "VmRSS:")}
seconds = {"open_s": opened - imported, "step_s": drawn - opened}
tars = len({tar for tar, _ in places})
print(json.dumps({"peak_mb": memory["VmHWM:"], "mb": memory["VmRSS:"], "tars": tars, **seconds}))
"""


def open_billion(folder: Path, repeats: int) -> list[Claim]:
    """Opens the set in a fresh process, finds the samples of the step at 90 %, and looks at the memory."""
    path = write_manifest_only(folder / "billion", SAMPLES, TARS)
    found = [_opened(path) for _ in range(repeats)]
    note = f"{SAMPLES:,} samples in {TARS:,} tars, a manifest without tars; whole process, with Python and numpy"
    from_tars = f"global batch of 4,096, from {found[0]['tars']:,.0f} tars"
    memory = "e. memory at 10^9 samples"
    return [
        _ours(f"{memory}, peak", found, "peak_mb", "MB", note=note, bar=MEMORY_BAR_MB),
        _ours(f"{memory}, after opening", found, "mb", "MB", note=note),
        _ours("e. opening 10^9 samples", found, "open_s", "s", note=note),
        _ours("e. finding a step at 90 % of 10^9", found, "step_s", "s", note=from_tars),
    ]


def _ours(
    name: str, found: Sequence[Mapping[str, float]], key: str, unit: str, *, note: str, bar: float | None = None
) -> Claim:
    values = [one[key] for one in found]
    return claim(name, values, None, unit, peer_name=None, bar=bar, direction="at most", note=note)


def build_indexes(shards: Path, repeats: int) -> Claim:
    """Makes the indexes of all tars again, checksums included."""
    tars, samples = sorted(shards.glob("*.tar")), int(Shards(shards).facts()["samples"])
    rates = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for tar in tars:
            build_index(tar)
        rates.append(samples / (time.perf_counter() - start))
    size_mb = sum(tar.stat().st_size for tar in tars) / samples / 1e6
    note = f"one process, warm page cache, every content hashed; {size_mb * 1000:.0f} kB a sample"
    return claim("e. building an index", rates[1:], None, "samples/s", peer_name=None, bar=INDEX_BAR, note=note)


def _opened(path: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", _OPEN, str(path)], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found
