"""Which nodes are fit to work: looks at the one it runs on, and knows which ones to leave out.

A node is left out of new jobs when it was found unfit by its own check, or when jobs of two different runs broke on it
(one run alone may be to blame itself), for `ledger_days` of the cluster file. Never more than a quarter of the nodes
that a job could use are left out, and never so many that the job could not run: the surest and latest go first.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from orchestrator.exits import read_plain
from orchestrator.resources import Resources
from slurm import probes
from slurm.asking import SlurmAway, SlurmRefused, ask
from slurm.cluster import Cluster
from slurm.ledger import Incident, Ledger, by_node

UNFIT = "unfit"  # the cause of a node that failed its own check
ENOUGH_RUNS = 2  # so many different runs must have suffered from a node that passed its check
ENOUGH_NODES = 2  # that say the same of a file system which they share
MOST_LEFT_OUT = 0.25  # of the nodes that a job could use
LONGEST_DETAIL = 500
CHECK_TIMEOUT_S = 30.0  # whatever has not answered by then (a dead file server never does) is a fault

log = logging.getLogger(__name__)


def check(cluster: Cluster, resources: Resources, run: Path, *, keeper_time: float | None = None) -> list[str]:
    """Looks at the node it runs on, in the place of a rank that is about to join, and lists all that is wrong.

    `keeper_time` is what the first node's clock showed a moment ago, where somebody knows.
    """
    probed: dict[str, Callable[[], Iterable[str]]] = {
        "the GPUs": partial(probes.gpu_faults, cluster, resources),
        "the disks": partial(probes.disk_faults, cluster),
        probes.RUN_FOLDER: partial(probes.run_faults, cluster, run, keeper_time),
        "the network interface": partial(probes.interface_faults, cluster),
        "the memory": partial(probes.memory_faults, resources),
    }
    found: dict[str, list[str]] = {}

    def look(what: str) -> None:
        try:
            found[what] = list(probed[what]())
        except Exception as error:  # a probe that breaks says something about the node, or about us: it is told
            log.exception("%s could not be looked at", what)
            found[what] = [f"{what} could not be looked at: {type(error).__name__}: {error}"]

    threads = [threading.Thread(target=look, args=(what,), daemon=True) for what in probed]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + CHECK_TIMEOUT_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [fault for what in probed for fault in found.get(what, [f"{what} did not answer for {CHECK_TIMEOUT_S:g} s"])]


def shared_fault(folder: Path, nodes: Sequence[str]) -> str | None:
    """Says what is wrong with the file system of a run, from the reports of an attempt's nodes; None if nothing is.

    A file server that hangs, or whose clock is wrong, makes many nodes look unfit in one moment: none is to blame.
    """
    reports = {path.stem.removeprefix("node_"): read_plain(path) for path in sorted(folder.glob("node_*.json"))}
    faults = {node: [str(fault) for fault in report.get("faults", ())] for node, report in reports.items()}
    if len(faults) < ENOUGH_NODES or 2 * len(faults) < len(nodes):
        return None
    if not all(found and all(probes.RUN_FOLDER in fault for fault in found) for found in faults.values()):
        return None
    told = next(iter(faults.values()))[0]
    return f"{told}; so say {len(faults)} of {len(nodes)} nodes at once: it is the file system, no node is to blame"


def blame(cluster: Cluster, node: str, cause: str, detail: str, *, run: str = "", once: bool = False) -> None:
    """Notes what happened on a node, with `once` unless it is known; where that cannot be written, work goes on."""
    now = time.time()
    expires = now + cluster.ledger_days * 86_400
    try:
        Ledger(cluster.ledger_path()).add(
            Incident(node=node, cause=cause, detail=detail[:LONGEST_DETAIL], run=run, time=now, expires=expires),
            once=once,
        )
    except OSError as error:
        log.warning("%s is not noted as bad (%s): %s", node, cause, error)


def bad_nodes(cluster: Cluster, resources: Resources | None = None) -> tuple[str, ...]:
    """Lists the nodes to leave out of a job: what fills `--exclude`, besides the cluster file's own list."""
    suspects = suspected(Ledger(cluster.ledger_path()).incidents())
    if not suspects:
        return ()
    usable = [node for node in _partition_nodes(cluster, resources) if node not in cluster.exclude]
    needed = 1 if resources is None else resources.nodes
    room = min(max(1, int(MOST_LEFT_OUT * len(usable))), len(usable) - needed)
    # a name that the partition does not know would make sbatch refuse the whole job
    chosen = [node for node in suspects if node in usable][: max(0, room)]
    spared = sorted({*suspects} & {*usable} - {*chosen})
    if spared:
        log.warning("suspected, but not left out, for too many would be: %s", ", ".join(spared))
    return tuple(sorted(chosen))


def enough_without(cluster: Cluster, resources: Resources, left_out: Iterable[str]) -> bool:
    """Tells whether a job still finds as many nodes as it needs; where Slurm does not say, it is hoped so."""
    there = _partition_nodes(cluster, resources)
    return not there or len({*there} - {*left_out}) >= resources.nodes


def suspected(incidents: Sequence[Incident]) -> list[str]:
    """Lists the nodes with enough against them, the surest and latest first."""

    def weight(of_node: Sequence[Incident]) -> tuple[bool, int, float]:
        unfit = any(incident.cause == UNFIT for incident in of_node)
        return unfit, len({incident.run for incident in of_node}), max(incident.time for incident in of_node)

    weights = {node: weight(of_node) for node, of_node in by_node(incidents).items()}
    enough = [node for node, (unfit, runs, _) in weights.items() if unfit or runs >= ENOUGH_RUNS]
    return sorted(enough, key=lambda node: weights[node], reverse=True)


def _partition_nodes(cluster: Cluster, resources: Resources | None) -> list[str]:
    """Lists the nodes of the partition that a job would go to (None: of any); none where Slurm does not say."""
    partitions = {cluster.partition, cluster.cpu_partition or cluster.partition}
    if resources is not None:
        partitions = {cluster.partition if resources.gpus_per_node else (cluster.cpu_partition or cluster.partition)}
    named = [f"--partition={','.join(sorted(map(str, partitions)))}"] if None not in partitions else []
    command = ["sinfo", "--noheader", "--Node", "--format=%N", *named]
    try:
        return sorted(set(ask(command).split()))
    except (SlurmAway, SlurmRefused) as error:
        log.warning("no node is left out, for Slurm does not say which there are: %s", error)
        return []
