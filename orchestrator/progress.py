"""How far a stage is: a small file that `orch status` and the live table read."""

import json
import logging
import time
from pathlib import Path
from typing import Any

from orchestrator.artifacts import write_json
from orchestrator.heartbeat import Beat, Phase
from orchestrator.redaction import hide

PROGRESS = "progress.json"
_MOST_NOTES = 5

log = logging.getLogger(__name__)


class Progress:
    """Writes `progress.json` in a stage's folder, at most once in `every_s` seconds, and the heartbeat of this rank.

    `done` and `total` count `unit`s ("step", "sample", "image"); `values` are a few numbers worth showing live.
    """

    def __init__(self, directory: Path | None, *, every_s: float = 0.5, beat: Beat | None = None) -> None:
        """Reports into `directory`; None reports nowhere (ranks other than the first, tests)."""
        self._directory = directory
        self._beat = beat or Beat()
        self._notes: list[str] = []
        self._done: int | None = None
        self._every_s = every_s
        self._written = 0.0
        self._started: tuple[float, int] | None = None

    def enter(self, phase: Phase) -> None:
        """Says what this rank is about to do."""
        self._beat.enter(phase)

    def note(self, text: str) -> None:
        """Keeps a sentence for whoever looks at how far we are; the latest few."""
        self._notes = [*self._notes, hide(text)][-_MOST_NOTES:]

    def advance(self, done: int, total: int | None, unit: str, **values: float) -> None:
        """Says that `done` of `total` units are done; the rate counts from the first call on."""
        if done != self._done:  # a stage may say again and again that nothing is new
            self._done = done
            self._beat.step(done)
        now = time.time()
        if self._started is None:
            self._started = (now, done)
        finished = total is not None and done >= total
        if self._directory is None or (now - self._written < self._every_s and not finished):
            return
        self._written = now
        since, first = self._started
        rate = (done - first) / (now - since) if now > since else 0.0
        eta_s = (total - done) / rate if total is not None and rate > 0 else None
        count = {"done": done, "total": total, "unit": unit}
        shown = {**count, "rate_per_s": rate, "eta_s": eta_s, "time": now, "values": values, "notes": self._notes}
        try:
            write_json(self._directory / PROGRESS, shown)
        except OSError as error:  # a full disk must not end training: the next checkpoint will say so by itself
            log.warning("progress could not be written: %s", error)


def read_progress(directory: Path) -> dict[str, Any] | None:
    """Reads how far the stage in this folder is; None before it said anything."""
    try:
        shown: dict[str, Any] = json.loads((directory / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return shown


def moved_lately(directory: Path, within_s: float) -> bool:
    """Tells whether the stage in this folder has got on in the last `within_s` seconds."""
    try:
        return time.time() - (directory / PROGRESS).stat().st_mtime < within_s
    except OSError:
        return False
