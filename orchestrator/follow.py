"""Follows a run by reading its folder: a live table in a terminal, plain lines in a pipe."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from orchestrator.display import duration, progress_in_words, rate_in_words, status_table, values_in_words
from orchestrator.state import read_tracking
from orchestrator.status import Observer

TICK_S = 0.5  # the one who follows takes its time from the same cores
LINE_EVERY_S = 10.0
TOLD = frozenset({"FINISHED", "FAILED", "KILLED"})  # what the forwarder notes last


def follow(run: Observer, console: Console) -> dict[str, Any]:
    """Shows a run until nobody works on it any more, and returns its last status."""
    shown = run.look()
    if not console.is_terminal:
        lines = Lines()
        while True:
            for line in lines.news(shown):
                console.print(line, markup=False, soft_wrap=True)
            if over(shown):
                return shown
            time.sleep(TICK_S)
            shown = run.look()
    with Live(status_table(shown), console=console, auto_refresh=False) as live:
        while not over(shown):
            time.sleep(TICK_S)
            shown = run.look()
            live.update(status_table(shown), refresh=True)
    return shown


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


def log_pieces(run: Observer, stage: str, path: Path, *, follow: bool) -> Iterator[str]:
    """Yields a log as it is, and, to follow it, what is appended until the stage ends or begins another attempt."""
    with path.open("r", encoding="utf-8", errors="replace") as file:
        attempts = len(run.stage(stage)["attempts"])
        while True:
            shown = run.stage(stage)  # before reading: what it wrote last must not be missed
            while piece := file.read(1 << 16):
                yield piece
            if not follow or shown["state"] != "running" or len(shown["attempts"]) != attempts:
                return
            time.sleep(TICK_S)


def over(shown: Mapping[str, Any]) -> bool:
    """Tells whether nobody works on the run any more."""
    return shown["ended"] is not None


class Lines:
    """Turns one status after another into lines: what began, what ended, and now and then how far it is."""

    def __init__(self) -> None:
        """Has said nothing yet."""
        self._said: dict[str, tuple[str, int]] = {}
        self._spoke = time.monotonic()

    def news(self, shown: Mapping[str, Any]) -> Iterator[str]:
        """Yields what is new since the last call."""
        for stage in shown["stages"]:
            now = (stage["state"], len(stage["attempts"]))
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
    if attempt is None or stage["state"] == "reused":
        return line
    if stage["state"] == "running":
        begun = f" at step {attempt['from_step']}" if attempt["from_step"] else ""
        return f"{line} (attempt {attempt['number']}){begun}"
    return f"{line} after {duration((attempt['ended'] or time.time()) - attempt['started'])}" + (
        f" ({attempt['cause']})" if attempt["cause"] else f" {_progress_only(stage)}".rstrip()
    )


def _progress(stage: Mapping[str, Any]) -> str:
    eta = f"ETA {duration(stage['eta_s'])}" if stage["eta_s"] is not None else ""
    words = [_progress_only(stage), rate_in_words(stage["progress"]), eta]
    return f"{stage['name']}: " + ("  ".join(filter(None, words)) or "starting")


def _progress_only(stage: Mapping[str, Any]) -> str:
    return "  ".join(filter(None, [progress_in_words(stage), values_in_words(stage["progress"])]))
