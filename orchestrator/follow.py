"""Follows a run by reading its folder: as plain lines, to its end, and the logs of a stage."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.display import (
    duration,
    job_in_words,
    lasted_s,
    progress_in_words,
    queue_in_words,
    rate_in_words,
    silence_in_words,
    values_in_words,
)
from orchestrator.errors import InputError
from orchestrator.logs import AttemptLogs, chosen_attempt, refuse_unknown_rank
from orchestrator.records import record
from orchestrator.state import read_tracking
from orchestrator.status import Observer

TICK_S = 0.5  # the one who follows takes its time from the same cores
LINE_EVERY_S = 10.0
TOLD = frozenset({"FINISHED", "FAILED", "KILLED"})  # what the forwarder notes last


def wait(run: Observer) -> dict[str, Any]:
    """Waits in silence until nobody works on a run any more, and returns its last status."""
    while not over(shown := run.look()):
        time.sleep(TICK_S)
    return shown


def wait_for_mlflow(directory: Path, patience_s: float) -> bool:
    """Waits until MLflow has heard how the run ended; False if the patience ended first."""
    deadline = time.monotonic() + patience_s
    while read_tracking(directory).get("status") not in TOLD:
        if time.monotonic() > deadline:
            return False
        time.sleep(TICK_S)
    return True


@record
class Wanted:
    """Which logs somebody wants to see."""

    stage: str
    attempt: int | None = None  # None = the last one, and to follow, every one after it
    rank: int | None = None  # None = all, as one
    follow: bool = False


def log_lines(run: Observer, wanted: Wanted, notice: Callable[[str], None]) -> Iterator[str]:
    """Yields the logs of a stage line by line; what is not in a log (which file, what it waits for) goes to `notice`.

    To follow means: until the stage has ended, through every attempt that is still to come.
    """
    logs: AttemptLogs | None = None
    said = ""
    while True:
        shown, over = run.stage(wanted.stage), run.over()  # before reading: what it wrote last must not be missed
        attempt, comes = chosen_attempt(shown, wanted.attempt), _comes(shown, over=over)
        ended = attempt is not None and attempt["ended"] is not None
        if attempt is not None and (logs is None or logs.number != attempt["number"]):
            yield from logs.read(to_the_end=True) if logs is not None else ()
            logs = _begun(run, shown, attempt, wanted, notice)
        if logs is not None:
            yield from logs.read(to_the_end=ended or not wanted.follow)
        elif not comes:
            raise InputError(f"{wanted.stage} has not been started, so it has no log")
        comes = comes and not (ended and wanted.attempt is not None)
        if comes and (ended or attempt is None) and _waits(shown) != said:
            said = _waits(shown)
            notice(said)
        if not (comes and wanted.follow):
            return
        time.sleep(TICK_S)


def _begun(
    run: Observer,
    shown: Mapping[str, Any],
    attempt: Mapping[str, Any],
    wanted: Wanted,
    notice: Callable[[str], None],
) -> AttemptLogs:
    """Opens the logs of an attempt, and says which one it is and where they are."""
    if wanted.rank is not None and (attempt["ended"] is not None or not wanted.follow):
        refuse_unknown_rank(run.directory, shown, attempt, wanted.rank)
    logs = AttemptLogs(run.directory / wanted.stage, attempt, wanted.rank)
    paths = logs.paths()
    where = paths[0] if len(paths) == 1 else run.directory / wanted.stage / "logs" / f"attempt_{attempt['number']}"
    notice(f"attempt {attempt['number']} ({job_in_words(attempt)}): {where}")
    return logs


def _comes(shown: Mapping[str, Any], *, over: bool) -> bool:
    """Tells whether an attempt runs or is still to come."""
    if over or shown["state"] in {"done", "reused", "cancelled"}:
        return False
    last = shown["attempts"][-1] if shown["attempts"] else None
    if last is None or last["ended"] is None:
        return True
    relaunched = shown["state"] == "waiting" and last["state"] != "done"
    return relaunched or shown["state"] == "queued" or str(last["decision"]).startswith("again")


def _waits(shown: Mapping[str, Any]) -> str:
    last = shown["attempts"][-1] if shown["attempts"] else None
    ended = f"attempt {last['number']} has ended ({last['cause'] or last['state']}); " if last else ""
    return f"{ended}{shown['name']} is {shown['state']}" + (f": {words}" if (words := queue_in_words(shown)) else "")


def over(shown: Mapping[str, Any]) -> bool:
    """Tells whether nobody works on the run any more."""
    return shown["ended"] is not None


class Lines:
    """Turns one status after another into lines: what began, what ended, and now and then how far it is."""

    def __init__(self) -> None:
        """Has said nothing yet."""
        self._said: dict[str, tuple[str, int, str]] = {}
        self._silence = ""
        self._spoke = time.monotonic()

    def news(self, shown: Mapping[str, Any]) -> Iterator[str]:
        """Yields what is new since the last call."""
        silence = silence_in_words(shown)
        if bool(silence) != bool(self._silence):
            yield silence or "the cluster answers again"
        self._silence = silence
        for stage in shown["stages"]:
            now = (stage["state"], len(stage["attempts"]), (stage["waiting"] or {}).get("reason", ""))
            if now != self._said.get(stage["name"]) and stage["state"] != "waiting":
                self._spoke = time.monotonic()
                yield _event(stage)
            elif stage["state"] == "running" and time.monotonic() - self._spoke > LINE_EVERY_S:
                self._spoke = time.monotonic()
                yield _progress(stage)
            self._said[stage["name"]] = now


def _event(stage: Mapping[str, Any]) -> str:
    attempt = stage["attempts"][-1] if stage["attempts"] else None
    line = f"{stage['name']}: {stage['state']}"
    if stage["state"] == "queued":
        return f"{line}: {queue_in_words(stage)}".rstrip(": ")
    if attempt is None or stage["state"] == "reused":
        return line
    if stage["state"] == "running":
        begun = f" at step {attempt['from_step']}" if attempt["from_step"] else ""
        return f"{line} (attempt {attempt['number']}, {job_in_words(attempt)}){begun}"
    return f"{line} after {duration(lasted_s(attempt))}" + (
        f" ({attempt['cause']})" if attempt["cause"] else f" {_progress_only(stage)}".rstrip()
    )


def _progress(stage: Mapping[str, Any]) -> str:
    eta = f"ETA {duration(stage['eta_s'])}" if stage["eta_s"] is not None else ""
    words = [_progress_only(stage), rate_in_words(stage["progress"]), eta]
    return f"{stage['name']}: " + ("  ".join(filter(None, words)) or "starting")


def _progress_only(stage: Mapping[str, Any]) -> str:
    return "  ".join(filter(None, [progress_in_words(stage), values_in_words(stage["progress"])]))
