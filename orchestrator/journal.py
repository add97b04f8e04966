"""The append-only journal of a stage: everything MLflow will be told, on disk before MLflow hears of it."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

JOURNAL = "journal.jsonl"


class Journal:
    """Appends one JSON line an event to `journal.jsonl`; never raises into training, never waits for a network.

    Events: {"event": "metrics", "time": s, "step": n, "values": {...}}, {"event": "params", "values": {...}},
    {"event": "picture" | "table" | "file", "path": relative to the stage folder, "name": ...}.
    """

    def __init__(self, directory: Path | None) -> None:
        """Writes into `directory`; None writes nowhere (ranks other than the first, tests)."""
        self._file = None if directory is None else (directory / JOURNAL).open("a", encoding="utf-8")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers of a step."""
        self.append("metrics", step=step, values=dict(values))

    def append(self, event: str, **fields: Any) -> None:
        """Records one event with its time."""
        if self._file is not None:
            self._file.write(json.dumps({"event": event, "time": time.time(), **fields}, ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
