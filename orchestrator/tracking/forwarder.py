"""Brings MLflow up to a run's journals: once for `orch sync`, or for as long as the run lasts."""

import fcntl
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import InputError, RunBusy, SurroundingsError, TrackingAway, TrackingRefused
from orchestrator.local import settle
from orchestrator.records import record
from orchestrator.redaction import hide
from orchestrator.state import LAUNCH, Launch, read_launch, read_state
from orchestrator.tracking.addresses import absolute_uri, artifact_root, without_password
from orchestrator.tracking.beside import Beside, beside
from orchestrator.tracking.decision import decide
from orchestrator.tracking.pace import LOOK_EVERY_S, keep_telling
from orchestrator.tracking.registrar import Registrar
from orchestrator.tracking.story import recipe_story, stage_stories
from orchestrator.tracking.teller import Teller

if TYPE_CHECKING:
    from orchestrator.tracking.store import Store

log = logging.getLogger(__name__)

LOCK = "tracking.lock"
SETTLE_EVERY_S = 5.0
REPORT_REST = 20.0  # times as long as writing the page took, before it is written again: of a thousand stages, many end
PATIENCE_S = 20.0  # how long a forwarder keeps trying after its run has ended
NO_MLFLOW = "MLflow is told nothing (tracking.uri is null)"
# a request that is not answered soon is worth repeating later; whoever sets these himself is obeyed
SETTINGS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_DISABLE_TELEMETRY": "true"}
# MLflow's client repeats what got no answer, "make a run" too, which then makes a second one. We look first.
NO_REPEATS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


@record
class Delivery:
    """What a forwarder told MLflow."""

    uri: str | None  # without password; None where tracking is off
    mlflow_run_id: str | None
    points: int  # told by this call
    complete: bool  # nothing is left to tell
    message: str


def forward(run_dir: Path, *, follow: bool, stop: threading.Event | None = None) -> Delivery:
    """Tells MLflow everything in a run's journals that it has not heard.

    With `follow`, goes on until the run has ended or `stop` is set; a server that is away is tried again and again, and
    at the end given up quietly. Without, tells what is there now, and raises TrackingAway if the server is away.
    """
    launch = read_launch(run_dir)
    if launch is None:
        raise InputError(f"{run_dir} was never launched: there is no {LAUNCH} in it")
    if not launch.tells():
        message = "tracking is off (tracking.uri is null)"
        return Delivery(uri=None, mlflow_run_id=None, points=0, complete=True, message=message)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.update(NO_REPEATS)
    stop = stop or threading.Event()
    # while a run goes on its forwarder does; after the end it is done soon, and there is something to wait for
    patience_s = math.inf if follow else 2 * PATIENCE_S if launch.ended is not None else 0.0
    with (
        _only_one(run_dir, patience_s=patience_s, stop=stop) as lock,
        beside(run_dir, launch, follow=follow, lock=lock) as others,
    ):
        forwarder = _Forwarder(run_dir, launch)
        try:
            delivery = forwarder.follow(stop) if follow else forwarder.once()
        finally:
            told = _wait_for(others, PATIENCE_S if follow else None, stop)
        return _joined(delivery, told)


def _wait_for(others: Sequence[Beside], patience_s: float | None, stop: threading.Event) -> dict[str, bool]:
    """Waits for those who are told beside MLflow; returns by name who was told everything."""
    for other in others if stop.is_set() else ():
        other.ask()
    return {other.name: other.wait(patience_s) for other in others}


def _joined(delivery: Delivery, told: Mapping[str, bool]) -> Delivery:
    """Says what became of them, too."""
    words = [
        f"{name} {'knows it, too' if all_told else 'was not told all (logs/tracking.log)'}"
        for name, all_told in told.items()
    ]
    return replace(
        delivery, complete=delivery.complete and all(told.values()), message="; ".join([delivery.message, *words])
    )


class _Forwarder:
    """The one process that speaks to MLflow about a run."""

    def __init__(self, run_dir: Path, launch: Launch) -> None:
        self._run_dir = run_dir
        self._address = absolute_uri(launch.tracking.get("uri") or "", Path.cwd())
        self._uri = without_password(self._address)  # empty where only others are told
        experiment = launch.tracking.get("experiment") or launch.recipe
        self._teller = Teller(self._open, self._uri, str(experiment))
        self._registrar, self._registration = Registrar(lambda: self._teller.store, self._uri), ""
        self._mlflow_run_id: str | None = None
        self._last_complaint = ""
        self._settle_at = time.monotonic() + SETTLE_EVERY_S
        self._reported = 0.0  # the latest end of an attempt that the page tells of
        self._report_at = 0.0  # not before, on our own clock

    def once(self) -> Delivery:
        """Tells what is there now."""
        settle(self._run_dir)
        if not self._uri:
            return self._delivery(complete=True, message=NO_MLFLOW)
        try:
            self._tell()
        except TrackingAway:  # a server may let go of a connection that rested: one more time, from where it broke off
            time.sleep(LOOK_EVERY_S)
            self._tell()
        words = f"; its export is {self._registration}" if self._registration else ""
        message = f"MLflow at {self._uri} knows everything of {self._run_dir}{words}"
        return self._delivery(complete=True, message=message)

    def follow(self, stop: threading.Event) -> Delivery:
        """Tells what comes until the run ends, then what is left."""
        keep_telling(self._tried, lambda: self._is_over(stop), stop)
        deadline = time.monotonic() + PATIENCE_S
        while not self._tried():
            if time.monotonic() >= deadline:
                return self._delivery(
                    complete=False,
                    message=f"MLflow at {self._uri} was not told all. Nothing is lost: orch sync {self._run_dir}",
                )
            time.sleep(LOOK_EVERY_S)
        told = f"MLflow at {self._uri} was told everything" if self._uri else NO_MLFLOW
        return self._delivery(complete=True, message=told)

    def _tried(self) -> bool:
        try:
            self._tell()
        except (SurroundingsError, OSError) as error:
            words = hide(str(error))
            if words != self._last_complaint:
                log.warning("MLflow was not told everything yet: %s", words)
            self._last_complaint = words
            return False
        self._last_complaint = ""
        return True

    def _tell(self) -> None:
        launch = read_launch(self._run_dir)
        if launch is None:
            raise SurroundingsError(f"{self._run_dir / LAUNCH} is gone")
        self._write_report(launch)
        if not self._uri:
            return
        story = recipe_story(self._run_dir, launch)
        parent = self._teller.begin(story)
        self._tell_stages(launch, parent)
        # its end is told last: a recipe that says FINISHED has said everything
        self._mlflow_run_id = self._teller.tell(story, None)
        if self._mlflow_run_id != parent:  # MLflow had lost the parent: its children must learn of the new one
            self._tell_stages(launch, self._mlflow_run_id)
        # after all else: whatever is wrong with a registry, MLflow knows of the run
        decision = decide(self._run_dir, launch)
        self._registration = "" if decision is None else self._registrar.tell(decision, self._run_dir)

    def _write_report(self, launch: Launch) -> None:
        """Writes the page again when an attempt has ended since it was written; it belongs to the run's files."""
        if launch.ended is None and time.monotonic() < self._report_at:
            return
        page, begun = self._run_dir / "report.html", time.monotonic()
        states = [read_state(self._run_dir / str(entry["name"])) for entry in launch.stages]
        latest = max((attempt.ended or 0.0 for state in states for attempt in state.attempts), default=0.0)
        if latest <= max(self._reported, page.stat().st_mtime if page.is_file() else 0.0):
            return
        self._reported = latest
        try:
            from orchestrator.report import make_report

            make_report(self._run_dir, page)
        except Exception:  # the report is a view: whatever is wrong with it, MLflow hears of the run
            log.exception("the report could not be written")
        self._report_at = time.monotonic() + REPORT_REST * (time.monotonic() - begun)

    def _tell_stages(self, launch: Launch, parent: str) -> None:
        refusals = []
        for story in stage_stories(self._run_dir, launch):
            try:
                self._teller.tell(story, parent)
            except TrackingRefused as error:  # of one stage; the others are told all the same
                refusals.append(f"{story.name}: {error}")
        if refusals:
            raise TrackingRefused("; ".join(refusals))

    def _open(self) -> "Store":
        from orchestrator.tracking.store import Store

        return Store(self._address, artifact_root(self._address, Path.cwd()))

    def _is_over(self, stop: threading.Event) -> bool:
        if stop.is_set():
            return True
        if time.monotonic() >= self._settle_at:  # a supervisor that was killed cannot say that it ended
            settle(self._run_dir)
            self._settle_at = time.monotonic() + SETTLE_EVERY_S
        launch = read_launch(self._run_dir)
        return launch is None or launch.ended is not None

    def _delivery(self, *, complete: bool, message: str) -> Delivery:
        return Delivery(
            uri=self._uri or None,
            mlflow_run_id=self._mlflow_run_id,
            points=self._teller.points,
            complete=complete,
            message=message,
        )


@contextmanager
def _only_one(run_dir: Path, *, patience_s: float, stop: threading.Event) -> Iterator[int]:
    """Holds the right to speak about a run, a lock on the file it yields; RunBusy if another has it beyond patience."""
    deadline = time.monotonic() + patience_s
    with (run_dir / LOCK).open("a+", encoding="utf-8") as file:
        while not _took(file.fileno()):
            if time.monotonic() >= deadline or stop.wait(LOOK_EVERY_S):
                file.seek(0)
                holder = file.read().strip() or "somebody else"
                raise RunBusy(f"MLflow is being told of {run_dir} already, by {holder}")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield file.fileno()


def _took(fileno: int) -> bool:
    try:
        fcntl.flock(fileno, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
