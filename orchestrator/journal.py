"""The append-only journal of a stage: everything MLflow will be told, on disk before MLflow hears of it."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.redaction import Screen

JOURNAL = "journal.jsonl"
BLOCK_BYTES = 1 << 16

log = logging.getLogger(__name__)


class Journal:
    """Appends one JSON line an event to `journal.jsonl`; never raises into training, never waits for a network.

    Secrets are hidden before they reach the disk: what reads it (MLflow, reports, alerts) need not look for them.

    Events: {"event": "metrics", "time": s, "step": n, "values": {...}}, {"event": "params", "values": {...}},
    {"event": "picture" | "table" | "file", "path": relative to the stage folder, "name": ...}.
    """

    def __init__(self, directory: Path | None) -> None:
        """Writes into `directory`; None writes nowhere (ranks other than the first, tests)."""
        # unbuffered: what a full disk refused must not be tried again, and fail again, at the end of training
        self._file = None if directory is None else (directory / JOURNAL).open("ab", buffering=0)
        self._screen = Screen()
        self._torn = _ends_in_half_a_line(directory)  # the next event must not be glued to it

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers of a step."""
        self.append("metrics", step=step, values=dict(values))

    def append(self, event: str, **fields: Any) -> None:
        """Records one event with its time."""
        if self._file is None:
            return
        text = json.dumps({"event": event, "time": time.time(), **self._screen.plain(fields)}, ensure_ascii=False)
        line = b"\n" * self._torn + text.encode() + b"\n"
        try:
            self._torn = self._file.write(line) != len(line)
        except OSError as error:  # a full disk must not end training: the next checkpoint will say so by itself
            self._torn = True
            log.warning("the journal could not be written (%s); this event is lost: %s", error, text[:200])

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def read_events(directory: Path) -> Iterator[dict[str, Any]]:
    """Yields the events of the journal in a stage's folder, leaving out lines that a killed process cut short."""
    path = directory / JOURNAL
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            yield from _event(line)


def read_backwards(directory: Path) -> Iterator[dict[str, Any]]:
    """Yields the same events, the last one first: what has just happened is known without reading what was before."""
    path = directory / JOURNAL
    if not path.is_file():
        return
    with path.open("rb") as file:
        end, rest = file.seek(0, 2), b""
        while end > 0:
            start = max(0, end - BLOCK_BYTES)
            file.seek(start)
            first, *lines = (file.read(end - start) + rest).split(b"\n")
            for line in reversed(lines):
                yield from _event(line)
            end, rest = start, first
        yield from _event(rest)


def _event(line: bytes) -> Iterator[dict[str, Any]]:
    try:
        event = json.loads(line)
    except ValueError:
        return
    if isinstance(event, dict):
        yield event


def _ends_in_half_a_line(directory: Path | None) -> bool:
    if directory is None:
        return False
    with (directory / JOURNAL).open("rb") as file:
        size = file.seek(0, 2)
        if size == 0:
            return False
        file.seek(size - 1)
        return file.read(1) != b"\n"
