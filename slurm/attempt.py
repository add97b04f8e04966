"""One attempt of a stage inside a job: ranks by srun, told where they meet, waited for until none is left."""

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.records import record
from slurm import ear
from slurm.asking import SlurmAway, SlurmRefused, ask, is_away
from slurm.hostlist import expand
from slurm.meeting import address_for, free_port

TICK_S = 1.0
SPARE_S = 3.0  # of the grace time: to write down how it ended before Slurm kills us
KEEPER_LOG = "keeper.log"
BEGINS = "attempt {number} begins"  # in the log of the job: what Slurm writes after it belongs to that attempt
ASK_AGAIN_S = 5.0  # Slurm, which did not answer
LEAVING_S = 5.0  # for an srun that is told to end
LAYOUT = "%(asctime)s keeper %(levelname)s: %(message)s"
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
    begun: bool = False  # at least one rank was started
    stuck: bool = False  # it was ended, since it started none for so long

    def unanswered(self) -> bool:
        """Tells whether nothing was started because Slurm did not answer: the stage has no part in that."""
        if self.begun or self.told or self.stuck or self.code == 0:
            return False
        from slurm.states import read_line

        said = [line for line in self.lines if line.startswith("srun: ")]
        return any(map(is_away, said)) and not any(map(read_line, said))  # a node that is away is another matter


def run_ranks(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], *, grace_s: float,
    patience_s: Callable[[], float], tick: Callable[[], None],
) -> Finished:  # fmt: skip
    """Runs srun to its end, or until this job is about to be killed, or until it has started no rank for too long.

    What srun and Slurm's daemons say goes to `keeper.log`; `tick` is called about once a second. `patience_s` says how
    long is too long.
    """
    told_at, since, begun, stuck = None, time.monotonic(), False, False
    with (folder / KEEPER_LOG).open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            preexec_fn=ear.release,  # noqa: PLW1509 - it makes two system calls
        )  # fmt: skip
        start_s = patience_s()
        while process.poll() is None:
            if ear.listen(TICK_S) == signal.SIGTERM and told_at is None:
                told_at = time.monotonic()
                log.info("told to end by SIGTERM; so were the ranks")
            if told_at is not None and time.monotonic() > told_at + max(1.0, grace_s - SPARE_S):
                log.warning("the ranks do not leave, and the time that they have for it is over")
                process.kill()
                process.wait()
                break
            begun = begun or _begun(folder)
            if not begun and told_at is None and time.monotonic() > since + start_s:
                log.warning("srun has started no rank for %.0f s: it is ended", start_s)
                stuck = True
                _end(process)
                break
            tick()
    return Finished(
        code=process.returncode, told=told_at is not None, lines=_lines_since(folder / KEEPER_LOG, start),
        begun=begun or _begun(folder), stuck=stuck,
    )  # fmt: skip


def once_slurm_answers(
    start: Callable[[], Finished], allocation: Allocation, *, tick: Callable[[], None], given_up: Callable[[], bool]
) -> Finished:
    """Starts ranks again and again while Slurm does not answer and the job has time; says how the last srun ended."""
    while True:
        finished, until = start(), time.monotonic() + ASK_AGAIN_S
        left_s = allocation.left_s()
        if not finished.unanswered() or (left_s is not None and left_s < 2 * ASK_AGAIN_S):
            return finished
        log.warning("Slurm does not answer, and no rank was started: it is asked again")
        while time.monotonic() < until:
            if ear.listen(min(TICK_S, max(0.0, until - time.monotonic()))) == signal.SIGTERM:
                return replace(finished, told=True)
            tick()
        if given_up():
            return finished


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


def _begun(folder: Path) -> bool:
    """Tells whether any warden has opened its log."""
    return next(folder.glob("rank_*.log"), None) is not None


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(LEAVING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Writes this process's log beside those of the ranks too."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(LAYOUT))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
