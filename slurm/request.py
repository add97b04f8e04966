"""What one job asks of Slurm: the parameters of sbatch for its keeper, the srun line for its ranks. Pure."""

import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.resources import Resources, rank_count
from slurm.cluster import LONGEST_SIGNAL_S, Cluster

NAME_PART = 80
UNMEASURED_SAVE_S = 120.0  # how long a save may take before any was measured
EARLY_S = 60  # Slurm may send the signal this much before the time it was asked for
OF_THE_HOST = ("LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "VIRTUAL_ENV")
SHARE_OF_TIME = 4  # a job is told to stop in the last quarter of its time at the earliest


def job_name(run: str, stage: str, token: str) -> str:
    """Names a submission so that its job can be found by name alone: nobody else has its token."""
    return f"orch-{_plain(run)}-{_plain(stage)}-{token}"


def sbatch_parameters(
    cluster: Cluster,
    resources: Resources,
    *,
    name: str,
    run: Path,
    after: Sequence[str] = (),
    exclude: Sequence[str] = (),
    signal_s: int,
) -> dict[str, Any]:
    """Returns submitit's parameters of a stage's job; None leaves a flag out."""
    gpus = resources.gpus_per_node
    wanted = {
        "job_name": name,
        "partition": partition_of(cluster, resources),
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint if gpus else None,
        "comment": cluster.comment,
        "nodes": resources.nodes,
        "ntasks_per_node": rank_count(resources),
        "cpus_per_task": cpus_per_task(cluster, resources),
        "mem": _memory(cluster, resources),
        "time": None if resources.hours is None else math.ceil(resources.hours * 60),
        "exclude": ",".join(sorted({*cluster.exclude, *exclude})) or None,
        "dependency": f"afterok:{':'.join(after)}" if after else None,
        "wckey": None,  # submitit's own is refused by sites that keep a list
        "setup": setup_lines(cluster, run),
        "use_srun": False,  # the keeper starts its ranks itself, as often as it takes
        "signal_delay_s": signal_s,  # to the steps, not to the keeper: it sees its ranks leave
        "additional_parameters": _additional(cluster, run),
    }
    return wanted | _gpus(cluster, gpus)


def partition_of(cluster: Cluster, resources: Resources) -> str | None:
    """Returns where a stage waits: stages without GPUs need not wait for those with."""
    return cluster.partition if resources.gpus_per_node else (cluster.cpu_partition or cluster.partition)


def setup_lines(cluster: Cluster, run: Path) -> list[str]:
    """Returns the shell lines before the keeper starts: the site's own, then the code that the run was launched with.

    Everything of ours is quoted; secrets of whoever launches come with the environment, which no text holds.
    """
    lines = [*cluster.setup]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(cluster.environment.items())]
    code = shlex.quote(str(run / "code"))
    lines.append(f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}")
    return lines


def keeper_python(cluster: Cluster) -> str:
    """Returns the words that start Python for the keeper, for a shell.

    `exec`, so that no shell stands between Slurm's signals and the keeper; -P, so that it imports the run's code and
    nothing that lies where the job happens to start.
    """
    return f"exec {shlex.quote(cluster.python or sys.executable)} -P"


def srun_command(
    cluster: Cluster, document: Mapping[str, Any], run: Path, stage: str, *, extra: Sequence[str] = ()
) -> list[str]:
    """Returns the command with which a keeper starts the wardens of a stage (its `stage.json`): one a rank.

    What they need beyond this command is in the environment that the keeper gives srun.
    """
    resources = Resources(**document["resources"])
    tasks = rank_count(resources)
    cpus = cpus_per_task(cluster, resources)
    return [
        *_without_the_host(cluster),
        "srun",
        f"--nodes={resources.nodes}",
        f"--ntasks={resources.nodes * tasks}",
        f"--ntasks-per-node={tasks}",
        *([f"--cpus-per-task={cpus}"] if cpus is not None else []),  # since 22.05 srun does not ask sbatch for it
        "--distribution=block",  # whatever a site sets: a rank that fails is looked for on the node of its number
        "--kill-on-bad-exit=1",  # a rank that is gone leaves the others waiting for it
        f"--wait={cluster.grace_s + 60}",  # and so does one that ended well before its time
        "--input=none",
        "--unbuffered",
        "--export=ALL",
        *_pyxis(cluster, run),
        *cluster.srun,
        *extra,
        *_apptainer(cluster, run, gpus=resources.gpus_per_node > 0),
        *_task_python(cluster, run),
        "-P",
        "-m",
        "slurm.task",
        str(run),
        stage,
    ]


def signal_seconds(
    cluster: Cluster, resources: Resources, *, save_s: float | None = None, step_s: float | None = None
) -> int:
    """Says how long before the end of its time a job is told: two saves, one step, and what Slurm is early by.

    Never more than a share of the time itself: a short job that was told to stop at its start would never work.
    """
    if cluster.signal_s is not None:
        return cluster.signal_s
    wanted = math.ceil(2 * (UNMEASURED_SAVE_S if save_s is None else save_s) + (step_s or 0.0) + EARLY_S)
    share = LONGEST_SIGNAL_S if resources.hours is None else int(resources.hours * 3600 / SHARE_OF_TIME)
    return max(1, min(wanted, share, LONGEST_SIGNAL_S))


def cpus_per_task(cluster: Cluster, resources: Resources) -> int | None:
    """Returns what the stage asks for, or its share of a node by its GPUs; None leaves it to Slurm."""
    if resources.cpus_per_task is not None:
        return resources.cpus_per_task
    if not resources.gpus_per_node or not cluster.gpus_per_node or not cluster.cpus_per_node:
        return None
    return max(1, cluster.cpus_per_node * resources.gpus_per_node // cluster.gpus_per_node // rank_count(resources))


def _memory(cluster: Cluster, resources: Resources) -> str | None:
    """Returns the memory of a node that the stage asks for, or its share by its GPUs or CPUs."""
    asked_gb = resources.memory_gb
    if asked_gb is None:
        share = _share(cluster, resources)
        if cluster.memory_gb_per_node is None or share is None:
            return None
        asked_gb = cluster.memory_gb_per_node * share
    return f"{math.ceil(asked_gb * 1024)}M"


def _share(cluster: Cluster, resources: Resources) -> float | None:
    if resources.gpus_per_node:
        return resources.gpus_per_node / cluster.gpus_per_node if cluster.gpus_per_node else None
    cpus = rank_count(resources) * (resources.cpus_per_task or 1)
    return min(1.0, cpus / cluster.cpus_per_node) if cluster.cpus_per_node else None


def _gpus(cluster: Cluster, gpus: int) -> dict[str, str]:
    if not gpus:
        return {}
    kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    return {"gres": f"gpu:{kind}{gpus}"} if cluster.gpu_flag == "gres" else {"gpus_per_node": f"{kind}{gpus}"}


def _additional(cluster: Cluster, run: Path) -> dict[str, str | int | bool]:
    """Returns the flags that submitit has no parameters for; true stands for a flag without a value."""
    extra = {flag: value for flag, value in cluster.extra.items() if value is not False}
    again = "requeue" if cluster.requeue else "no-requeue"
    return {"chdir": str(run), "kill-on-invalid-dep": "yes", again: True, **extra}


def _pyxis(cluster: Cluster, run: Path) -> list[str]:
    if cluster.container.kind != "pyxis":
        return []
    mounts = ",".join(_mounts(cluster, run))
    return [f"--container-image={cluster.container.image}", f"--container-mounts={mounts}"]


def _apptainer(cluster: Cluster, run: Path, *, gpus: bool) -> list[str]:
    if cluster.container.kind != "apptainer":
        return []
    binds = [word for mount in _mounts(cluster, run) for word in ("--bind", mount)]
    return ["apptainer", "exec", *(["--nv"] if gpus else []), *binds, str(cluster.container.image)]


def _mounts(cluster: Cluster, run: Path) -> list[str]:
    inside = [mount if ":" in mount else f"{mount}:{mount}" for mount in cluster.container.mounts]
    return [*inside, f"{run}:{run}"]


def _without_the_host(cluster: Cluster) -> list[str]:
    """Keeps from containers by what the host's Python and libraries would be loaded; srun itself cannot empty any."""
    if cluster.container.kind == "none":
        return []
    return ["env", *(f"--unset={name}" for name in OF_THE_HOST if name not in cluster.environment)]


def _task_python(cluster: Cluster, run: Path) -> list[str]:
    """Returns the words that start Python for a task; in a container our code is all that is added to the image's."""
    if cluster.container.kind != "none":
        return ["env", f"PYTHONPATH={run / 'code'}", cluster.container.python]
    return [cluster.python or sys.executable]


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)[:NAME_PART]
