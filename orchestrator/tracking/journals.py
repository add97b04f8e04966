"""The part of a journal that MLflow has not seen, in batches it accepts."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.journal import JOURNAL
from orchestrator.records import record

POINTS_PER_BATCH = 1000
NAME_LENGTH = 250
EVERY_LOSS = "loss_every_step"  # beside the averages over log_every steps


@record
class Point:
    """One number of one step."""

    key: str
    value: float
    time_ms: int
    step: int


@record
class Batch:
    """Some lines of a journal."""

    points: tuple[Point, ...]
    params: Mapping[str, Any]
    files: tuple[str, ...]  # paths below the folder
    redone: int  # points left out because an earlier attempt delivered their step
    last_steps: Mapping[str, int]
    end: int  # offset behind the last line


def read_batch(directory: Path, offset: int, last_steps: Mapping[str, int]) -> Batch:
    """Reads from `offset` until a batch is full or the journal ends; half a line waits for its other half.

    A step that was delivered already is left out: an attempt that resumes repeats the steps since its checkpoint, and
    one run keeps one curve.
    """
    reader = _Reader(last_steps)
    end = offset
    path = directory / JOURNAL
    if path.is_file():
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                reader.take(line)
                if len(reader.points) >= POINTS_PER_BATCH:
                    break
    return reader.batch(end)


def accepted_name(name: str) -> str:
    """Turns a name into one that MLflow takes for metrics, params and tags, where it also serves as a path."""
    parts = (part for part in re.sub(r"[^\w\-. :/]", "_", name).split("/") if part not in {"", ".", ".."})
    joined = "/".join(parts).strip("/ ")[:NAME_LENGTH].strip("/ ")
    return f"_{joined}"[:NAME_LENGTH] if joined.startswith("..") else joined or "_"


class _Reader:
    """Collects what lines say."""

    def __init__(self, last_steps: Mapping[str, int]) -> None:
        self.points: list[Point] = []
        self._params: dict[str, Any] = {}
        self._files: list[str] = []
        self._redone = 0
        self._last_steps = dict(last_steps)

    def take(self, line: bytes) -> None:
        """Reads one line; one that a killed process cut short, or that is of another kind, says nothing."""
        try:
            event = json.loads(line)
        except ValueError:
            return
        if not isinstance(event, dict):
            return
        values, path = event.get("values"), event.get("path")
        if event.get("event") == "metrics" and isinstance(values, dict):
            self._take_metrics(values, step=_whole(event.get("step")), time_s=event.get("time"))
        elif event.get("event") == "loss":
            self._take_metrics(
                {EVERY_LOSS: event.get("value")}, step=_whole(event.get("step")), time_s=event.get("time")
            )
        elif event.get("event") == "params" and isinstance(values, dict):
            self._params.update(values)
        elif event.get("event") in {"picture", "table", "file"} and isinstance(path, str):
            self._files.append(path)

    def batch(self, end: int) -> Batch:
        """Returns everything taken, up to the offset `end`."""
        return Batch(
            points=tuple(self.points),
            params=self._params,
            files=tuple(self._files),
            redone=self._redone,
            last_steps=self._last_steps,
            end=end,
        )

    def _take_metrics(self, values: Mapping[str, Any], *, step: int, time_s: Any) -> None:
        time_ms = int(time_s * 1000) if isinstance(time_s, int | float) else 0
        for name, value in values.items():
            if not isinstance(value, int | float):
                continue
            key = accepted_name(name)
            if step <= self._last_steps.get(key, step - 1):
                self._redone += 1
                continue
            self._last_steps[key] = step
            self.points.append(Point(key=key, value=float(value), time_ms=time_ms, step=step))


def _whole(step: Any) -> int:
    return int(step) if isinstance(step, int | float) else 0
