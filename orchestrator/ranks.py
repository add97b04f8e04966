"""The processes of one attempt of a stage on this machine: started together, ended together."""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

from orchestrator.causes import PREEMPTED_EXIT, cause_of_exit, kernel_oom_kills
from orchestrator.recipe import Resources
from orchestrator.records import record
from orchestrator.state import Ending

NO_SPACE_BYTES = 1 << 20  # a rank that leaves no record on a disk with less has failed for want of it

log = logging.getLogger(__name__)


@record
class Patience:
    """How long the supervisor waits for others before it stops asking."""

    save_s: float = 60.0  # for a stage that was asked to save and leave
    peers_s: float = 5.0  # for ranks whose peer has died: they can only wait for it in vain
    drain_s: float = 60.0  # for the forwarder to tell MLflow what is left in the journals


class Rank:
    """One process of an attempt, in a process group of its own, with its log."""

    def __init__(self, number: int, command: list[str], environment: Mapping[str, str], folder: Path) -> None:
        """Starts the process; what it prints goes to `rank_N.log`."""
        self.number = number
        self.folder = folder
        self.ended: float | None = None
        self.told_to_leave = False
        with (folder / f"rank_{number}.log").open("ab") as output:
            self.process = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                process_group=0,
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

    def failure(self, *, oom_kills: int) -> dict[str, Any]:
        """Returns {class, message, cause, time} of a process that did not end well."""
        try:
            failure = json.loads((self.folder / f"rank_{self.number}.error.json").read_text(encoding="utf-8"))
            return cast("dict[str, Any]", failure)
        except (OSError, ValueError):
            cause, message = cause_of_exit(self.process.returncode, oom_kills=oom_kills)
            if self.process.returncode > 0 and shutil.disk_usage(self.folder).free < NO_SPACE_BYTES:
                cause, message = "disk", f"there is no space left on the disk of {self.folder}"
            return {"class": "", "message": message, "cause": cause, "time": self.ended}


class Ranks:
    """All processes of one attempt."""

    def __init__(self, ranks: list[Rank], patience: Patience) -> None:
        """Takes over processes that were just started."""
        self._ranks = ranks
        self._patience = patience
        self._kill_at: float | None = None
        self._oom_kills_before = kernel_oom_kills()

    @classmethod
    def start(cls, run: Path, stage: str, attempt: int, resources: Resources, patience: Patience) -> Self:
        """Starts one worker per rank, logging into the attempt's folder."""
        folder = run / stage / "logs" / f"attempt_{attempt}"
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-P", "-m", "orchestrator.worker", str(run), stage]  # -P: code of the run only
        ranks: list[Rank] = []
        try:
            for number in range(rank_count(resources)):
                environment = _environment(run, folder, attempt, number, resources)
                ranks.append(Rank(number, command, environment, folder))
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
        """Names the rank that failed first and why; peers that only missed it are not the cause."""
        failed = [rank for rank in self._ranks if rank.process.returncode != 0]
        if not failed:
            return Ending(state="done")
        oom_kills = kernel_oom_kills() - self._oom_kills_before
        failures = [(rank, rank.failure(oom_kills=oom_kills)) for rank in failed]
        first, failure = min(failures, key=lambda pair: _blame(*pair))
        where = f"rank {first.number}: " if len(self._ranks) > 1 else ""
        kind = f"{failure['class']}: " if failure["class"] else ""
        detail = f"{where}{kind}{failure['message']}"[:2000]
        return Ending(state="failed", cause=failure["cause"], detail=detail, rank=first.number)


def rank_count(resources: Resources) -> int:
    """Returns how many processes a stage gets on this machine: as asked, else one per GPU, else one."""
    return resources.tasks_per_node or max(1, resources.gpus_per_node)


def _blame(rank: Rank, failure: Mapping[str, Any]) -> tuple[bool, bool, float]:
    consequence = failure["cause"] in {"communication", "hang"}
    return rank.told_to_leave, consequence, float(failure["time"])


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
