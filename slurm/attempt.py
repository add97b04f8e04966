"""One attempt of a stage inside a job: ranks by srun, told where they meet, waited for until none is left."""

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orchestrator.records import record
from slurm import ear
from slurm.asking import SlurmAway, SlurmRefused, ask
from slurm.hostlist import expand
from slurm.meeting import address_for, free_port

TICK_S = 1.0
SPARE_S = 3.0  # of the grace time: to write down how it ended before Slurm kills us
KEEPER_LOG = "keeper.log"
BEGINS = "attempt {number} begins"  # in the log of the job: what Slurm writes after it belongs to that attempt
NO_LIMIT_S = 366 * 86_400.0  # Slurm gives a job without a limit an end in a far year

log = logging.getLogger(__name__)


@record
class Allocation:
    """What Slurm gave to this job, and until when."""

    job_id: str
    nodes: tuple[str, ...]
    restarts: int
    began: float  # CLOCK_MONOTONIC when the job did
    limit_s: float | None  # None: no limit

    @classmethod
    def from_environment(cls) -> "Allocation":
        """Reads Slurm's variables, and asks how long the job may take."""
        told, said = os.environ, described(os.environ["SLURM_JOB_ID"])
        ran_s = seconds(said.get("RunTime", "")) or 0.0  # before us: its prolog, and Python's start
        return cls(
            job_id=told["SLURM_JOB_ID"], nodes=expand(told.get("SLURM_JOB_NODELIST", "")),
            began=time.monotonic() - ran_s, restarts=int(told.get("SLURM_RESTART_COUNT", "0")),
            limit_s=seconds(said["TimeLimit"]) if "TimeLimit" in said else limit_in(told),
        )  # fmt: skip

    def left_s(self) -> float | None:
        """Returns the seconds until the job's time ends. Only this node's clock counts, and only how it goes."""
        return None if self.limit_s is None else self.limit_s - (time.monotonic() - self.began)


@record
class Standing:
    """What Slurm is about to do with the job of an attempt that has ended."""

    stays: bool  # nothing: another attempt may begin here
    requeued: bool  # it waits, or will wait, under its own id
    preempted: bool  # somebody else gets the nodes soon


def described(job_id: str) -> Mapping[str, str]:
    """Returns what `scontrol show job` says; nothing where Slurm does not answer now."""
    try:
        words = ask(["scontrol", "show", "job", "--oneliner", job_id], tries=1).split()
    except (SlurmAway, SlurmRefused) as error:
        log.warning("nothing is known of job %s now: %s", job_id, error)
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


@record
class Finished:
    """How srun ended."""

    code: int
    told: bool  # Slurm had told the keeper to end
    lines: tuple[str, ...]  # what srun and Slurm's daemons said of it


def run_ranks(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], *, grace_s: float, tick: Callable[[], None]
) -> Finished:
    """Runs srun to its end, or until this job is about to be killed; `tick` is called about once a second.

    What srun and Slurm's daemons say goes to `keeper.log`.
    """
    told_at: float | None = None
    with (folder / KEEPER_LOG).open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            preexec_fn=ear.release,  # noqa: PLW1509 - it makes two system calls
        )  # fmt: skip
        while process.poll() is None:
            if ear.listen(TICK_S) == signal.SIGTERM and told_at is None:
                told_at = time.monotonic()
                log.info("told to end by SIGTERM; so were the ranks")
            if told_at is not None and time.monotonic() > told_at + max(1.0, grace_s - SPARE_S):
                log.warning("the ranks do not leave, and the time that they have for it is over")
                process.kill()
                process.wait()
                break
            tick()
    return Finished(code=process.returncode, told=told_at is not None, lines=_lines_since(folder / KEEPER_LOG, start))


def environment_of_ranks(
    allocation: Allocation, *, attempt: int, interface: str, grace_s: float, signal_s: float, tasks_per_node: int
) -> dict[str, str]:
    """Returns what the wardens are told beside their command line."""
    address, left_s = address_for(allocation.nodes, interface), allocation.left_s()
    # srun reads these as options of its own; the command line says what counts
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_CPU_BIND")}
    return {
        **inherited,
        "MASTER_ADDR": address,
        "MASTER_PORT": str(free_port(address)),
        "ORCH_RENDEZVOUS": "env://",
        "ORCH_ATTEMPT": str(attempt),
        "ORCH_INTERFACE": interface,
        "ORCH_LEFT_S": "" if left_s is None else f"{left_s:.1f}",
        "ORCH_GRACE_S": str(grace_s),
        "ORCH_SIGNAL_S": str(signal_s),
        "ORCH_LOCAL_SIZE": str(tasks_per_node),
        "ORCH_KEEPER_TIME": str(time.time()),
    }


def seconds(text: str) -> float | None:
    """Reads "1-02:03:04"; None for "UNLIMITED"."""
    days, _, rest = text.rpartition("-")
    with contextlib.suppress(ValueError):
        hours, minutes, spare = (int(part) for part in rest.split(":"))
        return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + spare)
    return None


def limit_in(environment: Mapping[str, str]) -> float | None:
    """Reads the time limit from what newer versions of Slurm put there, for when the controller does not answer."""
    with contextlib.suppress(KeyError, ValueError):
        limit_s = float(environment["SLURM_JOB_END_TIME"]) - float(environment["SLURM_JOB_START_TIME"])
        return limit_s if 0 < limit_s < NO_LIMIT_S else None
    return None


def _lines_since(path: Path, start: int) -> tuple[str, ...]:
    with path.open("rb") as file:
        file.seek(start)
        return tuple(file.read(1 << 20).decode("utf-8", errors="replace").splitlines())
