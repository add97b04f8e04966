"""What a keeper does for others while it keeps its stage: MLflow, notifications, and the end of the run."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.notify import PATIENCE_S, Event, tell, tell_failure
from orchestrator.state import Attempt, read_launch, read_state
from slurm import ear, submissions
from slurm.cluster import Cluster

if TYPE_CHECKING:
    from orchestrator.vigil import Vigil

FORWARDER_AFTER_S = 5.0  # the ranks start first: two imports at once would delay both
DRAIN_S, LATE_DRAIN_S = 5.0, 30.0  # for telling MLflow the end of a run: by one that is at work, by one that starts
ALERTS_S = 2.0  # for an alert of the last moment, while followers wait for this job to end

log = logging.getLogger(__name__)


class Company:
    """The others of one run, as its keepers see them."""

    def __init__(self, run: Path, stage: str, cluster: Cluster) -> None:
        """Starts nothing."""
        self._run, self._stage, self._cluster = run, stage, cluster
        self._start_at = time.monotonic() + FORWARDER_AFTER_S
        self._forwarder: subprocess.Popen[bytes] | None = None
        self._vigil: Vigil | None = None

    def attempt_begins(self, number: int, document: Mapping[str, Any]) -> None:
        """Begins to watch an attempt, if the stage has rules for that; without any, nothing is imported for it."""
        if self._vigil is None and any(document.get("alerts", {}).values()):
            from orchestrator.vigil import Vigil

            self._vigil = Vigil(self._run, self._stage, (self._cluster.notify,))
        if self._vigil is not None:
            self._vigil.begin(number)

    def attempt_ends(self, closed: Attempt) -> None:
        """Judges an attempt that was closed."""
        if self._vigil is not None:
            self._vigil.end(closed)

    def tick(self) -> None:
        """Starts the forwarder once the ranks have had their start, and looks after alerts."""
        if self._vigil is not None:
            self._vigil.tick()
        if self._forwarder is None and time.monotonic() > self._start_at:
            self._start_at = float("inf")  # one that ended has nothing to tell, or cannot
            self._guarded("MLflow cannot be told", self._start_forwarder)
            self._guarded("nobody was told", self._tell_of_start)

    def _tell_of_start(self) -> None:
        """Tells whoever wants to know that the run has begun, if this is its first attempt."""
        launch = read_launch(self._run)
        if launch is None:
            return
        begun = [
            attempt.started
            for entry in launch.stages
            for attempt in read_state(self._run / entry["name"]).attempts
            if attempt.started >= launch.started
        ]
        if len(begun) == 1:
            self._tell("started", patience_s=0.0)

    def hear_of_end(self) -> None:
        """Tells whoever wants to know that the stage ended for good without being done."""
        tell_failure(self._run, self._stage, others=(self._cluster.notify,)).wait()

    def end(self, *, done: bool) -> None:
        """Leaves: at once if followers wait for this job to end, else not before the run is put in order."""
        if self._vigil is not None:
            self._vigil.wait(ALERTS_S)
        if done and not self._is_last() and self._is_whole():
            self._stop_forwarder()
            return
        self._settle()
        launch = read_launch(self._run)
        if launch is None or launch.ended is None:
            self._stop_forwarder()
            return
        if done:
            self._tell("done")
        self._write_report()
        self._drain()

    def _is_last(self) -> bool:
        """Tells whether every stage is done; looks at the last one first, which most often is not."""
        launch = read_launch(self._run)
        wanted = [] if launch is None else [entry["name"] for entry in launch.stages if entry["action"] != "reuse"]
        return launch is not None and all(read_state(self._run / name).state == "done" for name in reversed(wanted))

    def _is_whole(self) -> bool:
        """Tells whether the launch came to its last stage: it may have been killed, or the queue was full."""
        launch = read_launch(self._run)
        names = [] if launch is None else [entry["name"] for entry in launch.stages if entry["action"] != "reuse"]
        found = submissions.read_submission(self._run / names[-1]) if names else None
        return found is not None and launch is not None and found.launch == launch.started

    def _settle(self) -> None:
        from slurm.launcher import SlurmLauncher

        self._guarded("the run could not be settled", lambda: SlurmLauncher(self._cluster).settle(self._run))

    def _write_report(self) -> None:
        def write() -> None:
            from orchestrator.report import make_report

            make_report(self._run, self._run / "report.html")

        self._guarded("the report could not be written", write)

    def _tell(self, event: Event, *, cause: str = "", detail: str = "", patience_s: float = PATIENCE_S) -> None:
        stage, others = "" if event == "done" else self._stage, (self._cluster.notify,)
        told = tell(self._run, event, stage=stage, cause=cause, detail=detail, others=others)
        told.wait(patience_s)

    def _guarded(self, complaint: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception:  # all of this is a view of the work: whatever is wrong with it, the work is done
            log.exception("%s", complaint)

    def _start_forwarder(self) -> None:
        launch = read_launch(self._run)
        if launch is None or not launch.tells():
            return
        command = [sys.executable, "-P", "-m", "orchestrator.tracking", str(self._run), "--follow"]
        with (self._run / "logs" / "tracking.log").open("ab") as output:
            self._forwarder = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                preexec_fn=ear.release_quietly,  # noqa: PLW1509 - it makes three system calls
            )  # fmt: skip

    def _drain(self) -> None:
        """Gives MLflow a moment to hear the end; `orch sync` tells it what it missed."""
        patience_s = DRAIN_S
        if self._forwarder is None:
            patience_s = LATE_DRAIN_S
            self._start_forwarder()
        if self._forwarder is None:
            return
        try:
            self._forwarder.wait(patience_s)
        except subprocess.TimeoutExpired:
            log.warning("MLflow is slow or away; `orch sync %s` tells it the rest", self._run)
        self._stop_forwarder()

    def _stop_forwarder(self) -> None:
        """Ends it at once: what it has not told, the forwarder of the next job does."""
        if self._forwarder is not None and self._forwarder.poll() is None:
            self._forwarder.kill()
            self._forwarder.wait()
