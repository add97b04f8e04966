"""Measures what orch adds to Slurm: between two stages, at launch, and with a thousand stages.

python -m benchmarks.handover                 # a table, about ten minutes
python -m benchmarks.handover --json --quick  # about a minute

The peer is bare: `sbatch --dependency=afterok` and `srun` of the very processes that orch's stages run; for the launch,
submitit called for the same chain. Both take turns on the same real Slurm on this machine.
"""

import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import yaml

from benchmarks import claims
from benchmarks.bare import BareChain
from benchmarks.claims import Claim
from benchmarks.command import Orch, dev_cluster
from orchestrator.errors import OrchError
from slurm.devcluster import DevCluster

ADDED_BAR_S, PLAN_BAR_S, PACE_BAR = 1.0, 3.0, 1.25
CHAIN, LINE_TIME = 12, re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")


class _Size(NamedTuple):
    rounds: int
    linked: int  # stages whose hand-over is waited for
    many: int  # stages that are submitted for their pace


_FULL = _Size(rounds=5, linked=CHAIN, many=1000)
_QUICK = _Size(rounds=2, linked=4, many=60)


def main() -> None:
    """Measures and prints, as a table or as JSON."""
    parser = claims.command_line(__doc__)
    options = parser.parse_args()
    size, machine = _QUICK if options.quick else _FULL, claims.machine()
    with dev_cluster("handover", nodes=2) as (cluster, folder):
        found = _measured(cluster, folder, size)
    claims.show(found, machine, claims.versions(), as_json=options.json)


def _measured(cluster: DevCluster, folder: Path, size: _Size) -> list[Claim]:
    orch = Orch(folder, cluster)
    found = [_hand_overs(cluster, orch, folder, size)]
    _hold(cluster, "DOWN")  # from here on jobs are queued, and none begins
    found.append(_launches(cluster, orch, folder, size))
    found.append(_planning(orch, folder, size))
    found.append(_pace(cluster, orch, folder, size))
    return found


def _hand_overs(cluster: DevCluster, orch: Orch, folder: Path, size: _Size) -> Claim:
    """Runs the same chain both ways, in turns: from the last line of a stage to the first line of the next."""
    ours: list[float] = []
    bare: list[float] = []
    for number in range(size.rounds):
        name = f"ours_{number}"
        recipe = write_chain(folder / f"{name}.yaml", name, size.linked)
        orch("launch", str(recipe), "--on", str(cluster.cluster_file()), "--detach")
        ours += gaps(awaited(folder / "runs" / name, size.linked))
        chain = BareChain(cluster, orch, write_chain(folder / f"bare_{number}.yaml", f"bare_{number}", size.linked))
        chain.submit()
        bare += gaps(awaited(chain.run, size.linked))
        cluster.wait_idle(60)
        claims.say(f"round {number + 1}: ours {statistics.median(ours):.2f} s, bare {statistics.median(bare):.2f} s")
    how = f"{len(ours)} hand-overs of {size.linked} stages each way; from a stage's last line to the next one's first"
    return added("hand-over between two stages", ours, bare, "sbatch --dependency=afterok", how)


def _launches(cluster: DevCluster, orch: Orch, folder: Path, size: _Size) -> Claim:
    """Launches a chain of twelve both ways, in turns: from the command to its end, when every job is queued."""
    ours: list[float] = []
    bare: list[float] = []
    for number in range(size.rounds + 1):
        name = f"launch_{number}"
        recipe = write_chain(folder / f"{name}.yaml", name, CHAIN)
        took_s = orch.timed("launch", str(recipe), "--on", str(cluster.cluster_file()), "--detach")
        submitit_s = BareChain(
            cluster, orch, write_chain(folder / f"s{number}.yaml", f"s{number}", CHAIN)
        ).by_submitit()
        if number:  # the first round warms the caches
            ours.append(took_s)
            bare.append(submitit_s)
        _empty_queue(cluster)
    how = f"a recipe of {CHAIN} stages, process start to end; checks, code snapshot and run folder included"
    return added("orch launch until every job is queued", ours, bare, "submitit", how)


def _planning(orch: Orch, folder: Path, size: _Size) -> Claim:
    recipe = write_chain(folder / "thousand.yaml", "thousand", 1000)
    seconds = [orch.timed("plan", str(recipe), "--json") for _ in range(size.rounds)]
    note = "orch plan --json of a chain of 1,000 stages, process start to end"
    return claims.claim(
        "planning 1,000 stages", seconds, None, "s", peer_name=None, bar=PLAN_BAR_S, direction="at most", note=note
    )


def _pace(cluster: DevCluster, orch: Orch, folder: Path, size: _Size) -> Claim:
    """Submits a long chain both ways; ours from the first stage that was asked for to the last that has its id."""
    recipe = write_chain(folder / "many.yaml", "many", size.many)
    whole_s = orch.timed("launch", str(recipe), "--on", str(cluster.cluster_file()), "--detach", timeout_s=900)
    _empty_queue(cluster)
    told = [_submitted(folder / "runs" / "many" / name) for name in ("link_0000", f"link_{size.many - 1:04d}")]
    ours = (told[1]["submitted"] - told[0]["intent"]) / size.many
    chain = BareChain(cluster, orch, write_chain(folder / "bare_many.yaml", "bare_many", size.many))
    began = time.perf_counter()
    chain.submit()
    bare = (time.perf_counter() - began) / size.many
    _empty_queue(cluster)
    note = f"{size.many} chained jobs; orch launch took {whole_s:.1f} s with planning, checks and the run folder"
    return claims.claim(
        "submission pace", [1000 * ours], [1000 * bare], "ms a job", peer_name="sbatch", bar=PACE_BAR,
        direction="at most", note=note,
    )  # fmt: skip


def write_chain(path: Path, name: str, stages: int) -> Path:
    """Writes a recipe whose stages each wait for the one before, and do next to nothing."""
    config = {"samples": 4, "features": 2, "targets": 1}
    names = [f"link_{number:04d}" for number in range(stages)]
    links = {
        link: {
            "stage": "rehearsal_data", "config": config, "resources": {"cpus_per_task": 1, "memory_gb": 1},
            **({"inputs": {"before": f"{before}.shards"}} if before else {}),
        }
        for link, before in zip(names, [None, *names[:-1]], strict=True)
    }  # fmt: skip
    document = {"name": name, "tracking": {"uri": None}, "stages": links}
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def gaps(logs: Sequence[Path]) -> list[float]:
    """Returns the seconds between the last line of each log and the first line of the next."""
    times = [_times(log) for log in logs]
    return [after[0] - before[-1] for before, after in itertools.pairwise(times)]


def added(name: str, ours: Sequence[float], bare: Sequence[float], peer: str, how: str) -> Claim:
    """Claims that ours takes at most a second more than the bare way."""
    found = claims.claim(name, ours, bare, "s", peer_name=peer, bar=None)
    more = statistics.median(ours) - statistics.median(bare)
    note = f"{how}; {more:+.2f} s; the bar is one of the difference"
    return found | {"bar": ADDED_BAR_S, "holds": more <= ADDED_BAR_S, "note": note}


def awaited(run: Path, stages: int, timeout_s: float = 600) -> list[Path]:
    """Waits until the last stage is done and returns the logs of all."""
    deadline = time.monotonic() + timeout_s
    last = run / f"link_{stages - 1:04d}" / "shards" / "manifest.json"
    while not last.is_file():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{last} is not there after {timeout_s:.0f} s")
        time.sleep(0.1)
    time.sleep(1)  # for its last line
    return [run / f"link_{number:04d}" / "logs" / "attempt_1" / "rank_0.log" for number in range(stages)]


def _times(log: Path) -> list[float]:
    stamps = LINE_TIME.findall(log.read_text(encoding="utf-8"))
    return [datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp() for stamp in stamps]


def _hold(cluster: DevCluster, state: str) -> None:
    for partition in ("main", "cpu"):
        cluster.run(["scontrol", "update", f"PartitionName={partition}", f"State={state}"], check=True)


def _submitted(stage: Path) -> dict[str, float]:
    """Returns when a stage was asked for, and when Slurm had taken it."""
    lines = (stage / "slurm" / "submissions.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["event"]: line["at"] for line in map(json.loads, lines)}


def _empty_queue(cluster: DevCluster) -> None:
    cluster.run(["scancel", "-u", "root"])
    deadline = time.monotonic() + 120
    while cluster.run(["squeue", "-h", "-o", "%i"]).stdout.strip() and time.monotonic() < deadline:
        time.sleep(0.2)


if __name__ == "__main__":
    try:
        main()
    except (OrchError, TimeoutError, subprocess.SubprocessError) as error:
        sys.exit(f"benchmarks.handover: {error}")
