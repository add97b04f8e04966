"""What Slurm and its database are told, as texts of configuration files; and what one cluster is."""

import json
import os
from pathlib import Path

from orchestrator.records import record

CPUS_PER_NODE = 8  # more than the machine has: a test's ranks wait more than they compute
MEMORY_MB_PER_NODE = 64_000
PARTITION_GRACE_S = 10  # what a preempted job of partition main or cpu has left
SCHEDULER = (
    "batch_sched_delay=0",
    "sched_interval=1",
    "sched_min_interval=100000",
    "bf_interval=1",
    "bf_continue",
)
NOTE = "devcluster.json"  # written first, removed last: a folder without it is never ours to delete


@record
class Layout:
    """One cluster: where it is, what it is called, which addresses it has."""

    folder: Path
    name: str
    nodes: int
    subnet: int
    requeue_delay_s: int

    @property
    def hosts(self) -> tuple[str, ...]:
        """Returns the names of the hosts that run jobs."""
        return tuple(f"{self.name}-n{number}" for number in range(1, self.nodes + 1))

    @property
    def controller(self) -> str:
        """Returns the name of the host that runs slurmctld, slurmdbd, MariaDB and munged."""
        return f"{self.name}-ctl"

    @property
    def bridge(self) -> str:
        """Returns the name of the interface that joins this machine to the hosts."""
        return f"orch77-{self.subnet}"

    @property
    def login(self) -> str:
        """Returns the address of this machine as the hosts see it."""
        return f"10.77.{self.subnet}.1"

    def number(self, host: str) -> int:
        """Returns the last part of a host's address."""
        return 2 if host == self.controller else 11 + self.hosts.index(host)

    def address(self, host: str) -> str:
        """Returns a host's address on the bridge."""
        return f"10.77.{self.subnet}.{self.number(host)}"

    def path(self, *parts: str) -> Path:
        """Returns a path in the cluster's folder."""
        return self.folder.joinpath(*parts)


def write_note(layout: Layout, *, first: bool = False) -> None:
    """Notes on disk what is being made; the first note is taken before anything is made, by one of us only."""
    facts = {
        "name": layout.name,
        "nodes": layout.nodes,
        "subnet": layout.subnet,
        "requeue_delay_s": layout.requeue_delay_s,
    }
    note, draft = layout.path(NOTE), layout.path(f".{NOTE}.{os.getpid()}")
    draft.write_text(json.dumps(facts, indent=1) + "\n")
    try:
        if first:
            note.hardlink_to(draft)  # unlike a rename, fails if somebody else was faster
        else:
            draft.rename(note)
    finally:
        draft.unlink(missing_ok=True)


def read_note(folder: Path) -> Layout | None:
    """Reads which cluster a folder holds; None if it holds none."""
    try:
        facts = json.loads((folder / NOTE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Layout(
        folder=folder,
        name=str(facts["name"]),
        nodes=int(facts["nodes"]),
        subnet=int(facts["subnet"]),
        requeue_delay_s=int(facts["requeue_delay_s"]),
    )


def write_settings(layout: Layout, login_name: str) -> None:
    """Writes every configuration file of the cluster."""
    for part in ("log", "run", "spool", "state"):
        layout.path(part).mkdir(exist_ok=True)
    layout.path("hosts").write_text(_hosts(layout, login_name))
    layout.path("host.sh").write_text(HOST_INIT)
    layout.path("cgroup.conf").write_text(_cgroup())
    layout.path("slurm.conf").write_text(_slurm(layout) + _hosts_and_partitions(layout))
    secret = layout.path("slurmdbd.conf")
    secret.touch(mode=0o600)  # slurmdbd refuses to start if others may read it
    secret.write_text(_slurmdbd(layout))
    layout.path("cluster.yaml").write_text(_cluster_file(layout))


def _hosts(layout: Layout, login_name: str) -> str:
    lines = ["127.0.0.1 localhost", f"{layout.login} {login_name}"]
    lines += [f"{layout.address(host)} {host}" for host in (layout.controller, *layout.hosts)]
    return "\n".join(lines) + "\n"


def _cgroup() -> str:
    # no plugin of ours uses cgroups, yet slurmd wants to know which kind it would find
    kind = "cgroup/v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "cgroup/v1"
    return f"CgroupPlugin={kind}\n"


def _slurm(layout: Layout) -> str:
    folder = layout.folder
    return f"""\
ClusterName={layout.name}
SlurmctldHost={layout.controller}({layout.address(layout.controller)})
SlurmUser=root
SlurmdUser=root
# a requeued job waits for as long as its old credentials are valid: 120 s by default
AuthInfo=socket={folder}/run/munge,cred_expire={layout.requeue_delay_s}

StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
SlurmdParameters=config_overrides
ReturnToService=2

# lost hosts, ended jobs and free places are noticed within seconds
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=5
TCPTimeout=1
KillWait=5
UnkillableStepTimeout=30
MinJobAge=300
SchedulerParameters={",".join(SCHEDULER)}

SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000

JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# a job that is preempted gets the signal it asked for with --signal at once, instead of a SIGTERM for its steps
SlurmctldParameters=preempt_send_user_signal

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={layout.address(layout.controller)}
AccountingStoragePass={folder}/run/munge
AccountingStoreFlags=job_comment
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=10
"""


def _hosts_and_partitions(layout: Layout) -> str:
    members = ",".join(layout.hosts)
    preemptible = f"PriorityTier=1 PreemptMode=REQUEUE GraceTime={PARTITION_GRACE_S}"
    lines = [
        f"NodeName={host} NodeHostname={host} NodeAddr={layout.address(host)} CPUs={CPUS_PER_NODE} "
        f"RealMemory={MEMORY_MB_PER_NODE} State=UNKNOWN"
        for host in layout.hosts
    ]
    lines += [
        f"PartitionName=main Nodes={members} Default=YES MaxTime=INFINITE State=UP {preemptible}",
        f"PartitionName=cpu Nodes={members} MaxTime=INFINITE State=UP {preemptible}",
        f"PartitionName=urgent Nodes={members} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF",
    ]
    return "\n".join(lines) + "\n"


def _slurmdbd(layout: Layout) -> str:
    folder = layout.folder
    return f"""\
DbdHost={layout.controller}
DbdAddr={layout.address(layout.controller)}
SlurmUser=root
AuthInfo=socket={folder}/run/munge
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
PidFile={folder}/run/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
CommitDelay=0
"""


def _cluster_file(layout: Layout) -> str:
    return f"""\
# The cluster file of a dev cluster: orch launch RECIPE --on {layout.path("cluster.yaml")}
name: {layout.name}
partition: main
cpu_partition: cpu
interface: eth0
gpus_per_node: 0
cpus_per_node: {CPUS_PER_NODE}
memory_gb_per_node: {MEMORY_MB_PER_NODE // 1000}
max_nodes: {layout.nodes}
grace_s: {PARTITION_GRACE_S}
ledger: {layout.path("nodes.jsonl")}
"""


# The first process of a host. Whoever kills it takes everything of the host along: processes, mounts, interface.
HOST_INIT = """\
set -eu
host=$1 address=$2 folder=$3
hostname "$host"
mount --bind "$folder/hosts" /etc/hosts
mount -t tmpfs shm /dev/shm  # hosts share no memory
# /sys shows the interfaces of this host, yet the cgroups stay where slurmd looks for them
mkdir -p "$folder/run/cgroup"
mount --rbind /sys/fs/cgroup "$folder/run/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$folder/run/cgroup" /sys/fs/cgroup
umount --lazy "$folder/run/cgroup"
ip link set lo up
until ip link set eth0 up 2>/dev/null; do sleep 0.02; done  # the other end is put there from outside
ip address add "$address/24" dev eth0
touch "$folder/run/$host.up"
while :; do sleep infinity; done
"""
