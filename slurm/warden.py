"""Looks after one rank: starts its worker, tells it to stop in time, sees when it hangs, leaves nothing behind."""

import contextlib
import ctypes
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.artifacts import write_json
from orchestrator.causes import BAD_NODE_EXIT, PREEMPTED_EXIT, kernel_oom_kills
from orchestrator.exits import hung_exit, made_exit, write_exit, write_stacks
from orchestrator.heartbeat import BEAT, Hang, Watch, limits_of
from orchestrator.records import record
from orchestrator.stacks import Stand, dump
from orchestrator.state import read_plain_stage
from orchestrator.stopping import DEADLINE, STOP
from slurm import ear
from slurm.meeting import interface_variables

TICK_S, CHECKING_TICK_S = 1.0, 0.05
EARLY_S = 90.0  # Slurm may send the signal of a time limit a minute before the time it was asked for
CLEARING_S = 5.0
_PR_SET_CHILD_SUBREAPER = 36

CLUSTER = "cluster.yaml"

log = logging.getLogger(__name__)


@record
class Task:
    """Which rank this is and what its keeper told it, from the environment."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    attempt: int
    left_s: float | None  # until the time of the job ends; None: it has no limit
    grace_s: float
    signal_s: float  # how long before the end of its time Slurm tells a job
    interface: str
    keeper_time: float

    @classmethod
    def from_environment(cls) -> "Task":
        """Reads what srun and the keeper have set."""
        told = os.environ
        return cls(
            rank=int(told["SLURM_PROCID"]), size=int(told["SLURM_NTASKS"]), local_rank=int(told["SLURM_LOCALID"]),
            local_size=int(told["ORCH_LOCAL_SIZE"]), attempt=int(told["ORCH_ATTEMPT"]),
            left_s=float(told["ORCH_LEFT_S"]) if told["ORCH_LEFT_S"] else None, grace_s=float(told["ORCH_GRACE_S"]),
            signal_s=float(told["ORCH_SIGNAL_S"]), interface=told["ORCH_INTERFACE"],
            keeper_time=float(told["ORCH_KEEPER_TIME"]),
        )  # fmt: skip


class Warden:
    """The parent of one worker."""

    def __init__(self, run: Path, stage: str, task: Task) -> None:
        """Reads what the stage asks for; nothing is started."""
        self._run, self._stage, self._task = run, stage, task
        self._document = read_plain_stage(run / stage)
        self._folder = run / stage / "logs" / f"attempt_{task.attempt}"
        self._deadline = None if task.left_s is None else time.time() + task.left_s
        left_s = task.left_s if task.left_s is not None and task.left_s > task.signal_s > 0 else math.inf
        self._stop_at = time.time() + left_s - task.signal_s
        self._stop_by = os.memfd_create("orch-stop")  # read by the worker: as good as a file, and gone with us
        self._told_to_leave = False
        _adopt_orphans()
        _log_to(self._folder / f"rank_{task.rank}.log", task)

    def work(self) -> int:
        """Runs the worker to its end and notes it; returns 0 unless the other ranks can only wait in vain now."""
        oom_kills = kernel_oom_kills()
        with contextlib.closing(Watch(limits_of(self._document))) as watch:
            worker = self._start(watch)
            check = _Check(self._run, self._document, self._task)
            hung = self._look_after(worker, watch, check)
            told, ended, pulse = self._told_to_leave, time.time(), watch.pulse()
        _clear(worker)
        status = BAD_NODE_EXIT if worker.returncode and check.faults(patient=True) else worker.returncode
        if status == 0:
            return 0
        left = made_exit(
            status, pulse, rank=self._task.rank, node=socket.gethostname(), ended=ended,
            told_to_leave=told and status != BAD_NODE_EXIT, oom_kills=kernel_oom_kills() - oom_kills,
        )  # fmt: skip
        with contextlib.suppress(OSError):  # a full disk: the keeper goes by what the others say
            if status == BAD_NODE_EXIT:
                write_json(self._folder / f"node_{left.node}.json", {"node": left.node, "faults": check.faults()})
            write_exit(self._folder, left if hung is None else hung_exit(left, *hung))
        return 0 if status == PREEMPTED_EXIT else status if status > 0 else 1

    def _start(self, watch: Watch) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-P", "-m", "orchestrator.worker", str(self._run), self._stage]
        with (self._folder / f"rank_{self._task.rank}.log").open("ab") as output:
            return subprocess.Popen(
                command, env=self._environment(watch), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, process_group=0, preexec_fn=ear.release,  # noqa: PLW1509 - there is one thread
            )  # fmt: skip

    def _environment(self, watch: Watch) -> dict[str, str]:
        task, resources = self._task, self._document["resources"]
        cores = len(os.sched_getaffinity(0))
        environment = {
            **interface_variables(task.interface, os.environ["MASTER_ADDR"]),
            "OMP_NUM_THREADS": os.environ.get("SLURM_CPUS_PER_TASK") or str(max(1, cores // task.local_size)),
            **os.environ,
            "RANK": str(task.rank),
            "WORLD_SIZE": str(task.size),
            "LOCAL_RANK": str(task.local_rank),
            "LOCAL_WORLD_SIZE": str(task.local_size),
            "ORCH_PARENT": str(os.getpid()),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(self._run / "code"), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
            BEAT: watch.address,
            STOP: f"/proc/{os.getpid()}/fd/{self._stop_by}",
        }
        if self._deadline is not None:
            environment[DEADLINE] = str(self._deadline)
        if resources.get("gpus_per_node", 0) == 0:  # what was asked for, also on a node that has more
            environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        return environment

    def _look_after(
        self, worker: "subprocess.Popen[bytes]", watch: Watch, check: "_Check"
    ) -> tuple[Hang, Stand] | None:
        """Waits for the worker to end, or ends it: because it hangs, or because the node is not fit for work."""
        hung: tuple[Hang, Stand] | None = None
        kill_at: float | None = None
        while worker.poll() is None:
            heard = ear.listen(CHECKING_TICK_S if check.going_on() else TICK_S)
            if heard is None and time.time() > self._stop_at:
                heard = signal.SIGUSR2  # Slurm speaks once to a job, by a clock of half a minute, and never again
            if heard in {signal.SIGTERM, signal.SIGUSR2}:
                self._ask_to_stop(worker, heard)
            if check.faults() or (kill_at is not None and time.monotonic() > kill_at):
                _kill_group(worker)
            hang = watch.poll() if hung is None else None
            if hang is not None:
                log.warning("rank %d %s", self._task.rank, hang)
                hung = hang, dump(worker.pid, watch)
                with contextlib.suppress(OSError):
                    write_stacks(self._folder, self._task.rank, hung[1])
                kill_at = time.monotonic() + hang.grace_s  # peers that wait for it are to be asked too
        self._told_to_leave |= ear.waits(signal.SIGTERM)  # Slurm told all of the step, and the worker was quicker
        return hung

    def _ask_to_stop(self, worker: "subprocess.Popen[bytes]", heard: int) -> None:
        """Tells the worker alone, and until when it lives: the job ends, or somebody else wants the node."""
        now = time.time()
        left_s = self._task.grace_s if self._deadline is None else self._deadline - now
        if heard == signal.SIGTERM or left_s > self._task.signal_s + EARLY_S:
            left_s = min(left_s, self._task.grace_s)
        log.info("told to stop by %s: %.0f s are left", signal.Signals(heard).name, left_s)
        os.pwrite(self._stop_by, f"{now + left_s:<20.3f}".encode(), 0)
        self._told_to_leave, self._stop_at = True, math.inf
        worker.terminate()


class _Check:
    """Looks at the node while the worker starts; one rank of each node does it."""

    def __init__(self, run: Path, document: Mapping[str, Any], task: Task) -> None:
        self._faults: list[str] = []
        self._arguments = run, document, task
        self._thread = threading.Thread(target=self._look, daemon=True)
        if task.local_rank == 0:
            self._thread.start()

    def going_on(self) -> bool:
        """Tells whether it is not through yet."""
        return self._thread.is_alive()

    def faults(self, *, patient: bool = False) -> list[str]:
        """Lists what is wrong with the node, as far as is known; `patient` waits for the end of the look."""
        if patient and self._thread.is_alive():
            self._thread.join()
        return [] if self._thread.is_alive() else self._faults

    def _look(self) -> None:
        from orchestrator.resources import Resources
        from slurm.cluster import reopen_cluster
        from slurm.nodes import check

        run, document, task = self._arguments
        cluster = reopen_cluster(run / CLUSTER)
        resources = Resources(**document["resources"])
        self._faults = check(cluster, resources, run, keeper_time=task.keeper_time)
        for fault in self._faults:
            log.error("this node is not fit for work: %s", fault)


def _clear(worker: "subprocess.Popen[bytes]") -> None:
    """Kills everything the worker has left, also what left its process group."""
    _kill_group(worker)
    until = time.monotonic() + CLEARING_S
    while (left := _children()) and time.monotonic() < until:
        for child in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def _children() -> list[int]:
    """Lists the children of this process: orphans of what it started have become its own."""
    try:
        return [int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:  # a kernel without this list: Slurm ends the rest with the step
        return []


def _kill_group(worker: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.pid, signal.SIGKILL)


def _adopt_orphans() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _log_to(path: Path, task: Task) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"warden of rank {task.rank}" if task.size > 1 else "warden"
    logging.basicConfig(filename=path, level=logging.INFO, format=f"%(asctime)s {prefix} %(levelname)s: %(message)s")
