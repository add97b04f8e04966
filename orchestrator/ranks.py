"""The processes of one attempt of a stage on this machine: started together, ended together."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from orchestrator.causes import PREEMPTED_EXIT, kernel_oom_kills
from orchestrator.exits import Exit, hung_exit, made_exit, write_exit, write_stacks
from orchestrator.heartbeat import BEAT, Hang, Limits, Watch, limits_of
from orchestrator.records import record
from orchestrator.resources import Resources, rank_count
from orchestrator.run import Run
from orchestrator.stacks import Stand, dump
from orchestrator.state import Ending
from orchestrator.verdict import verdict

log = logging.getLogger(__name__)


@record
class Patience:
    """How long the supervisor waits for others before it stops asking."""

    save_s: float = 60.0  # for a stage that was asked to save and leave
    peers_s: float = 5.0  # for ranks whose peer has died: they can only wait for it in vain
    drain_s: float = 60.0  # for the forwarder to tell MLflow what is left in the journals


class Rank:
    """One process of an attempt, in a process group of its own, with its log and its heartbeat."""

    def __init__(
        self, number: int, command: list[str], environment: Mapping[str, str], folder: Path, limits: Limits
    ) -> None:
        """Starts the process; what it prints goes to `rank_N.log`."""
        self.number = number
        self.folder = folder
        self.ended: float | None = None
        self.told_to_leave = False
        self.watch = Watch(limits)
        self._oom_kills_before = kernel_oom_kills()
        self._hung: tuple[Hang, Stand] | None = None
        with (folder / f"rank_{number}.log").open("ab") as output:
            self.process = subprocess.Popen(
                command, env={**environment, BEAT: self.watch.address}, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, process_group=0,
            )  # fmt: skip

    def poll(self) -> int | None:
        """Returns the exit status, or None while it runs; when it has ended, nothing of its group is left."""
        status = self.process.poll()
        if status is not None and self.ended is None:
            self.ended = time.time()
            self.kill()  # data workers it may have left
        return status

    def ask(self) -> None:
        """Asks the process to save and leave."""
        self.told_to_leave = self.told_to_leave or self.ended is None
        with contextlib.suppress(ProcessLookupError):
            if self.ended is None:
                self.process.terminate()

    def kill(self) -> None:
        """Kills the process and everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def note_hang(self, hang: Hang) -> None:
        """Keeps why this process, which still lives, is ended for good, and where it stands: `rank_N.stacks.txt`."""
        stand = dump(self.process.pid, self.watch)
        self._hung = hang, stand
        with contextlib.suppress(OSError):  # of a full disk; the verdict has what it needs
            write_stacks(self.folder, self.number, stand)

    def exit(self) -> Exit:
        """Tells how the process ended, and notes it in `rank_N.exit.json`."""
        oom_kills = kernel_oom_kills() - self._oom_kills_before
        ended = made_exit(
            self.process.returncode, self.watch.pulse(), rank=self.number, node=socket.gethostname(),
            ended=self.ended or time.time(), told_to_leave=self.told_to_leave, oom_kills=oom_kills,
        )  # fmt: skip
        ended = ended if self._hung is None else hung_exit(ended, *self._hung)
        with contextlib.suppress(OSError):
            write_exit(self.folder, ended)
        return ended


class Ranks:
    """All processes of one attempt."""

    def __init__(self, ranks: list[Rank], patience: Patience) -> None:
        """Takes over processes that were just started."""
        self._ranks = ranks
        self._patience = patience
        self._kill_at: float | None = None

    @classmethod
    def start(cls, run: Run, stage: str, attempt: int, patience: Patience) -> Self:
        """Starts one worker per rank, logging into the attempt's folder."""
        document = run.stage_document(stage)
        resources, limits = Resources(**document["resources"]), limits_of(document)
        folder = run.stage_directory(stage) / "logs" / f"attempt_{attempt}"
        folder.mkdir(parents=True, exist_ok=True)
        # -P: code of the run only
        command = [sys.executable, "-P", "-m", "orchestrator.worker", str(run.directory), stage]
        ranks: list[Rank] = []
        try:
            for number in range(rank_count(resources)):
                environment = _environment(run.directory, folder, attempt, number, resources)
                ranks.append(Rank(number, command, environment, folder, limits))
        except BaseException:
            for rank in ranks:
                rank.kill()
            raise
        return cls(ranks, patience)

    def running(self) -> bool:
        """Looks after the processes, and tells whether any is left; call it a few times a second."""
        statuses = [rank.poll() for rank in self._ranks]
        failed = [status for status in statuses if status not in (None, 0)]
        if failed and self._kill_at is None:
            saving = all(status == PREEMPTED_EXIT for status in failed)
            self.ask(self._patience.save_s if saving else self._patience.peers_s)
        if self._kill_at is None:
            self._end_if_hung()
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            self.kill()
        return None in statuses

    def ask(self, patience_s: float) -> None:
        """Asks every process to save and leave, and kills those that are still there after the patience."""
        self._kill_at = time.monotonic() + patience_s
        for rank in self._ranks:
            rank.ask()

    def kill(self) -> None:
        """Kills every process that is left."""
        for rank in self._ranks:
            if rank.ended is None:
                rank.kill()

    def ending(self) -> Ending:
        """Says how the attempt ended and why, once nothing of it runs."""
        exits = {rank.number: rank.exit() for rank in self._ranks if rank.process.returncode != 0}
        for rank in self._ranks:
            rank.watch.close()
        return verdict(self._ranks[0].folder, size=len(self._ranks), exits=exits)

    def _end_if_hung(self) -> None:
        """Ends all processes if one makes no steps any more: the others can only wait for it."""
        living = [rank for rank in self._ranks if rank.ended is None]
        hangs = {rank.number: rank.watch.poll() for rank in living}
        if not any(hangs.values()):
            return
        for rank in living:
            hang = hangs[rank.number] or rank.watch.silence()
            log.warning("rank %d %s", rank.number, hang)
            rank.note_hang(hang)
        self._kill_at = time.monotonic()


def _environment(run: Path, folder: Path, attempt: int, number: int, resources: Resources) -> dict[str, str]:
    size = rank_count(resources)
    cores = len(os.sched_getaffinity(0))
    code = os.pathsep.join(filter(None, [str(run / "code"), os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ,
        "RANK": str(number),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(number),
        "LOCAL_WORLD_SIZE": str(size),
        "ORCH_RENDEZVOUS": f"file://{folder.resolve() / 'rendezvous'}",
        "ORCH_ATTEMPT": str(attempt),
        "ORCH_PARENT": str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // size)),
        "PYTHONPATH": code,
        "PYTHONUNBUFFERED": "1",
    }
    if resources.gpus_per_node == 0:  # what was asked for, also on a machine that has more
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return environment
