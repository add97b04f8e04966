"""Works through the stages of a run on this machine, one after the other, until they are done or one fails."""

import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

from orchestrator.ballast import Ballast
from orchestrator.errors import SurroundingsError
from orchestrator.notify import PATIENCE_S, tell, tell_failure
from orchestrator.ranks import Patience, Ranks
from orchestrator.retry import Decision, conclude, tell_verdict
from orchestrator.run import Run, RunLock
from orchestrator.state import (
    Attempt,
    Ending,
    StageState,
    State,
    close_attempt,
    open_attempt,
    outputs_ready,
    read_launch,
    read_state,
    write_launch,
    write_state,
)
from orchestrator.vigil import Vigil
from orchestrator.wishes import wish_of

TICK_S = 0.1
LOWEST_PRIORITY, POLITE_BY = 19, 10  # in steps of `nice`, which count downwards

log = logging.getLogger(__name__)


class Supervisor:
    """Runs what a launch set out to do. Holds the run's lock from before it starts until its stages have ended."""

    def __init__(self, directory: Path, lock: RunLock, patience: Patience) -> None:
        """Takes over a prepared run; SIGTERM means cancel."""
        launch = read_launch(directory)
        if launch is None:
            raise SurroundingsError(f"{directory} was never launched: there is no launch.json in it")
        self._run = Run(directory)
        self._directory = directory
        self._lock = lock
        self._patience = patience
        self._launch = replace(launch, pid=os.getpid(), host=socket.gethostname())
        self._told_to_cancel = False
        self._vigils: list[Vigil] = []  # one a stage, as their turns come
        write_launch(directory, self._launch)
        self._ballast = Ballast(directory / "logs" / "ballast")
        signal.signal(signal.SIGTERM, self._receive)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal may close
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the one who follows, not the work

    def work(self) -> None:
        """Runs every stage that is not done, in order; after a failure the rest stays waiting."""
        works = any(entry["action"] != "reuse" for entry in self._launch.stages)
        forwarder = Forwarder(self._directory) if works and self._launch.tells() else None
        if works:
            tell(self._directory, "started")
        unfinished = next((entry["name"] for entry in self._launch.stages if not self._finish(entry["name"])), None)
        self._write_report()
        if forwarder is not None and forwarder.missing:
            self._note("MLflow was told nothing: orchestrator.tracking is not part of this installation")
        self._launch = replace(self._launch, ended=time.time())
        self._ballast.insist(lambda: write_launch(self._directory, self._launch))
        self._ballast.drop()
        self._lock.close()
        if works:
            told = tell_failure(self._directory, unfinished) if unfinished else tell(self._directory, "done")
            told.wait()
            for vigil in self._vigils:
                vigil.wait(PATIENCE_S)
        if forwarder is not None:
            forwarder.drain(self._patience.drain_s)

    def _finish(self, name: str) -> bool:
        """Runs a stage until it is done; tells whether the stages after it may go on."""
        self._vigils.append(Vigil(self._directory, name))
        while True:
            folder = self._run.stage_directory(name)
            if outputs_ready(self._run.stage_document(name)):
                self._settle(folder, "done")
                return True
            if self._cancelled(name):
                self._settle(folder, "cancelled")
                return False
            closed, decision = self._attempt(name)
            log.info("%s: %s %s", name, closed.state, closed.detail)
            if closed.state == "done":
                return True
            tell_verdict(folder, closed, decision)
            log.info("%s: %s", name, decision)
            if not decision.again:
                return False
            self._pause(name, decision.delay_s)

    def _settle(self, folder: Path, state: State) -> None:
        self._ballast.insist(lambda: write_state(folder, StageState(state=state, attempts=read_state(folder).attempts)))

    def _pause(self, name: str, delay_s: float) -> None:
        until = time.monotonic() + delay_s
        while time.monotonic() < until and not self._cancelled(name):
            time.sleep(TICK_S)
        self._ballast.take()

    def _attempt(self, name: str) -> tuple[Attempt, Decision]:
        folder, document = self._run.stage_directory(name), self._run.stage_document(name)
        place, job_id = (socket.gethostname(),), str(os.getpid())
        attempt = self._ballast.insist(lambda: open_attempt(folder, launcher="local", job_id=job_id, nodes=place))
        log.info("%s: attempt %d", name, attempt.number)
        self._vigils[-1].begin(attempt.number)
        try:
            ranks = Ranks.start(self._run, name, attempt.number, self._patience)
        except OSError as error:
            detail = f"its processes could not be started: {error}"
            close_attempt(folder, Ending(state="failed", cause="unknown", detail=detail))
            raise
        try:
            ending = self._wait(name, ranks)
        finally:
            ranks.kill()
        closed, decision = self._ballast.insist(
            lambda: conclude(folder, attempt.number, ending, document, again="waiting", elsewhere=False)
        )
        self._vigils[-1].end(closed)
        return closed, decision

    def _wait(self, name: str, ranks: Ranks) -> Ending:
        asked = False
        while ranks.running():
            if not asked and self._cancelled(name):
                log.info("%s: cancelled; it gets %.0f s to save and leave", name, self._patience.save_s)
                ranks.ask(self._patience.save_s)
                asked = True
            self._vigils[-1].tick()
            time.sleep(TICK_S)
        ending = ranks.ending()
        if ending.state == "done" and not outputs_ready(self._run.stage_document(name)):
            told = "every process ended well, but outputs are missing"
            return Ending(state="failed", cause="code_error", detail=told)
        if asked and ending.state != "done":
            return replace(ending, state="cancelled", cause="cancelled", detail=self._who_cancelled(name))
        return ending

    def _cancelled(self, name: str) -> bool:
        return self._told_to_cancel or wish_of(self._directory, name) is not None

    def _who_cancelled(self, name: str) -> str:
        wish = wish_of(self._directory, name)
        return "the supervisor was told to end (SIGTERM)" if wish is None else f"cancelled by {wish.get('user')}"

    def _write_report(self) -> None:
        try:
            from orchestrator.report import make_report

            make_report(self._directory, self._directory / "report.html")
        except Exception as error:  # the report is a view of the work: whatever is wrong with it, the work is done
            log.exception("the report could not be written")
            self._note(f"the report could not be written ({type(error).__name__}: {error}); see logs/supervisor.log")

    def _note(self, text: str) -> None:
        log.warning("%s", text)
        self._launch = replace(self._launch, notes=(*self._launch.notes, text))

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        self._told_to_cancel = True


class Forwarder:
    """The process that tells MLflow what the journals say; it may be late or fail, the stages do not notice."""

    def __init__(self, directory: Path) -> None:
        """Starts it, with lower priority and in a session of its own, so that it may outlive the supervisor."""
        self.missing = importlib.util.find_spec("orchestrator.tracking") is None
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        if not self.missing:
            self._start()

    def _start(self) -> None:
        command = [sys.executable, "-P", "-m", "orchestrator.tracking", str(self._directory), "--follow"]
        with (self._directory / "logs" / "tracking.log").open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        lower = min(LOWEST_PRIORITY, os.getpriority(os.PRIO_PROCESS, 0) + POLITE_BY)  # never a higher one: not allowed
        os.setpriority(os.PRIO_PROCESS, self._process.pid, lower)

    def drain(self, patience_s: float) -> None:
        """Waits for it to finish what is left; when the patience ends, it goes on alone."""
        if self._process is None:
            return
        try:
            code = self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            log.warning("MLflow is slow or down: process %d goes on telling it by itself", self._process.pid)
            return
        if code != 0:
            log.warning("telling MLflow ended with exit code %d (logs/tracking.log); `orch sync` repeats it", code)
