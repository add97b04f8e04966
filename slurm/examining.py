"""Asks whether a cluster is fit: whether Slurm answers and would take our jobs, and how it lets them end."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator.doctor.findings import Finding, doubtful, fine, unfit
from orchestrator.doctor.storage import file_system, nearest_there
from orchestrator.resources import Resources
from slurm.asking import SlurmAway, SlurmRefused, ask
from slurm.cluster import Cluster
from slurm.controller import Controller
from slurm.queue import settings
from slurm.request import partition_of
from slurm.sbatch import blamed

COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sinfo", "srun")
LEAST_JOB_AGE_S = 300  # followers are joined to their parents while the controller remembers these
ENOUGH_REQUEUES = 20
KEEPER_EXITS = frozenset({0, 1, 3})  # with which keepers end: Slurm is not to queue them again by itself
OF_ONE_MACHINE = frozenset({"tmpfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "ramfs"})
ENDING_MODES = frozenset({"CANCEL", "REQUEUE"})  # of preemption; others only let a job sleep
MANUAL = "see slurm/README.md, What matters in slurm.conf"


def examine(cluster: Cluster, slurm: Controller, runs: Path) -> Iterator[Finding]:
    """Asks Slurm what it is, and whether it would take our jobs; nothing is submitted.

    What is true of a node is looked at on the node, before a rank of a job joins.
    """
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        advice = "log in where jobs are submitted from, or load the site's module of Slurm"
        yield unfit("Slurm", f"not in PATH: {', '.join(missing)}", advice)
        return
    try:
        said = settings()
        partitions = _partitions()
    except (SlurmAway, SlurmRefused) as error:
        yield unfit("Slurm", str(error), "try `scontrol ping`, and ask whoever administers the cluster")
        return
    yield fine("Slurm", f"{said.get('SLURM_VERSION', 'of unknown version')} of {said.get('ClusterName')} answers")
    yield from _jobs(cluster, slurm, runs, partitions)
    yield from _accounting(said)
    yield from _endings(cluster, said)
    yield from _files(cluster, runs)


def _partitions() -> dict[str, Mapping[str, str]]:
    """Returns what Slurm says of each partition that this user sees; the default one also as ''."""
    found: dict[str, Mapping[str, str]] = {}
    for line in ask(["scontrol", "show", "partition", "--oneliner"]).splitlines():
        said = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "PartitionName" in said:
            found[said["PartitionName"]] = said
            if said.get("Default") == "YES":
                found[""] = said
    return found


def _jobs(
    cluster: Cluster, slurm: Controller, runs: Path, partitions: Mapping[str, Mapping[str, str]]
) -> Iterator[Finding]:
    """Describes a small job to Slurm, with and without a GPU, as a stage's would be."""
    hours = min(1.0, cluster.max_hours or 1.0)
    kinds = [("a job without GPUs", Resources(hours=hours))]
    if cluster.gpus_per_node:
        kinds.append(("a job of one GPU", Resources(hours=hours, gpus_per_node=1)))
    for about, resources in kinds:
        name = partition_of(cluster, resources) or ""
        where = f"partition {name}" if name else "Slurm's default partition"
        answer = slurm.test_only(runs.absolute() / "doctor" / "job", resources)
        if not answer.valid:
            yield unfit(about, blamed(answer.message), "mend that key of the cluster file; `sinfo` and `sacctmgr` know")
            continue
        said = partitions.get(name, {})
        if (state := said.get("State", "UP")) != "UP":
            message = f"{where} is {state}: a job waits until somebody changes that"
            yield doubtful(about, message, "ask whoever administers the cluster, or name another partition")
        else:
            yield fine(about, f"{where} would take it")
        grace = _seconds(said.get("GraceTime", "0"))
        if set(said.get("PreemptMode", "").split(",")) & ENDING_MODES and grace < cluster.grace_s:
            message = (
                f"{where} gives a preempted job {grace} s to save (GraceTime); the cluster file says {cluster.grace_s}"
            )
            yield doubtful("preemption", message, f"set grace_s: {grace}, or ask for a longer GraceTime; {MANUAL}")


def _accounting(said: Mapping[str, str]) -> Iterator[Finding]:
    if said.get("AccountingStorageType", "(null)") in {"(null)", "", "accounting_storage/none"}:
        message = "there is none: a waiting job that vanishes fails its stage, for nobody can say why"
        yield doubtful("accounting", message, f"ask for slurmdbd; {MANUAL}")
        return
    try:
        ask(["sacct", "--noheader", "--allocations", "--starttime=now-1minutes", "--format=JobIDRaw"])
    except (SlurmAway, SlurmRefused) as error:
        yield doubtful("accounting", str(error), "ask whoever administers the cluster; jobs run without it")
    else:
        yield fine("accounting", "sacct answers")


def _endings(cluster: Cluster, said: Mapping[str, str]) -> Iterator[Finding]:
    """Compares what Slurm does when a job ends with what keepers count on."""
    wait_s = _seconds(said.get("KillWait", ""))
    if 0 < wait_s < cluster.grace_s:
        message = f"a job that is cancelled has {wait_s} s to save (KillWait); the cluster file says {cluster.grace_s}"
        yield doubtful("KillWait", message, f"set grace_s: {wait_s} in the cluster file, or ask for a longer KillWait")
    age_s = _seconds(said.get("MinJobAge", ""))
    if 0 < age_s < LEAST_JOB_AGE_S:
        message = f"Slurm forgets a job {age_s} s after its end; a launch that takes longer loses its followers"
        yield doubtful("MinJobAge", message, f"ask for {LEAST_JOB_AGE_S} s or more; {MANUAL}")
    requeues = said.get("MaxBatchRequeue", "")
    if requeues.isdigit() and int(requeues) < ENOUGH_REQUEUES:
        message = f"after {requeues} requeues a job is held, and nobody is told but by `orch status`"
        yield doubtful("MaxBatchRequeue", message, f"ask for 100; {MANUAL}")
    for key in ("RequeueExit", "RequeueExitHold"):
        if clash := KEEPER_EXITS & _codes(said.get(key, "")):
            message = f"Slurm queues jobs again that end with {', '.join(map(str, sorted(clash)))}, as ours do"
            yield doubtful(key, message, f"ask to leave these out; {MANUAL}")


def _files(cluster: Cluster, runs: Path) -> Iterator[Finding]:
    place = nearest_there(runs)
    if (kind := file_system(place)) in OF_ONE_MACHINE:
        message = f"{place} lies on {kind}, as a rule a disk of this machine; all nodes must see it at the same path"
        yield doubtful("shared folder", message, "launch from a shared file system, unless this one is")
    ledger = nearest_there(cluster.ledger_path())
    if not os.access(ledger, os.W_OK):
        yield doubtful(
            "ledger", f"{ledger} is not ours to write: bad nodes are not remembered", "set ledger in the cluster file"
        )
    python = cluster.python
    if python is not None and "/" in python and not Path(python).exists():
        message = f"{python} is not on this machine; jobs start with it on theirs"
        yield doubtful("python", message, "see that nodes have it, or set python in the cluster file")


def _seconds(text: str) -> int:
    """Reads `30 sec` and `30`; 0 where there is no number."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def _codes(text: str) -> set[int]:
    """Reads exit codes as Slurm writes them: `1,5-8`."""
    codes: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        codes |= set(range(int(first), int(last or first) + 1))
    return codes
