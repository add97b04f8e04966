"""What a chain asks of slurmctld from its launch to its end, by slurmctld's own count, against a bare chain."""

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import claims
from benchmarks.bare import BareChain
from benchmarks.claims import Claim
from benchmarks.command import Orch, dev_cluster
from benchmarks.handover import awaited, write_chain
from slurm.devcluster import DevCluster

# what slurmd and slurmstepd send for any job, whoever submitted it
OWN = re.compile(r"^\s+(REQUEST_[A-Z_]+)\s+\(\s*\d+\)\s+count:(\d+)", re.MULTILINE)
COMPUTED_STAGES = 1000
MORE_BAR, LOOK_BAR = 20.0, 6.0


def requests(stages: int) -> list[Claim]:
    """Runs a chain both ways on a cluster of its own, and once a status of it."""
    with dev_cluster("scale", nodes=2) as (cluster, folder):
        return _counted(cluster, folder, stages)


def _counted(cluster: DevCluster, folder: Path, stages: int) -> list[Claim]:
    orch = Orch(folder, cluster)
    ours_recipe = write_chain(folder / "ours.yaml", "ours", stages)
    chain = BareChain(cluster, orch, write_chain(folder / "bare.yaml", "bare", stages))

    def launch() -> None:
        orch("launch", str(ours_recipe), "--on", str(cluster.cluster_file()), "--detach")
        awaited(folder / "runs" / "ours", stages)

    def submit() -> None:
        chain.submit()
        awaited(chain.run, stages)

    ours, bare = _during(cluster, launch), _during(cluster, submit)
    look = sum(_during(cluster, lambda: orch("status", "ours", "--json")).values())
    ours_s, bare_s = sum(ours.values()) / stages, sum(bare.values()) / stages
    most = ", ".join(f"{kind} {count}" for kind, count in sorted(ours.items(), key=lambda item: -item[1])[:6])
    more = ours_s - bare_s
    note = f"measured by sdiag over {stages} stages; {more:+.1f}, the bar is one of the difference; ours: {most}"
    a_stage = claims.claim(
        "requests to slurmctld a stage", [ours_s], [bare_s], "requests", peer_name="bare sbatch", bar=None
    ) | {"bar": MORE_BAR, "holds": more <= MORE_BAR, "note": note}
    computed = "computed from the above: each job asks for itself, and nobody polls between them"
    looked = f"measured with {stages} stages that are done; one squeue and one sacct, whatever their number"
    return [
        a_stage,
        _ours(f"requests to slurmctld, {COMPUTED_STAGES:,} stages", ours_s * COMPUTED_STAGES, None, computed),
        _ours("requests to slurmctld of an orch status", look, LOOK_BAR, looked),
    ]


def _ours(name: str, value: float, bar: float | None, note: str) -> Claim:
    return claims.claim(name, [value], None, "requests", peer_name=None, bar=bar, direction="at most", note=note)


def _during(cluster: DevCluster, act: Callable[[], object]) -> dict[str, int]:
    """Counts the requests of users while something happens; what the daemons send each other does not count."""
    cluster.wait_idle(60)
    cluster.run(["sdiag", "--reset"], check=True)
    act()
    text = cluster.run(["sdiag"], check=True).stdout
    kinds = text.partition("statistics by message type")[2].partition("statistics by user")[0]
    return {kind.removeprefix("REQUEST_").lower(): int(count) for kind, count in OWN.findall(kinds)}
