"""Writes what journals say for TensorBoard, one file of events a stage; the only module that imports tensorboard.

    RUN/STAGE/tensorboard/events.out.tfevents.orch    numbers of every step, and the settings as a text

The file is a function of the journal alone. How far it goes is noted after it is on disk; whoever goes on cuts off what
was not noted and writes it again, so that a kill leaves nothing twice and nothing half. The format keeps numbers in
single precision.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, Self

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

from orchestrator.artifacts import write_json
from orchestrator.tracking.journals import Point, read_batch
from orchestrator.tracking.story import Story

FOLDER = "tensorboard"
EVENTS = "events.out.tfevents.orch"  # by the middle of its name, TensorBoard finds it
TOLD = "told.json"
VERSION = "brain.Event:2"  # of the format; begins every file


class EventFiles:
    """The event files of a run."""

    def tell(self, story: Story) -> None:
        """Appends what is new in a stage's journal."""
        folder = story.directory / FOLDER
        told = _Told.load(folder)
        while True:
            batch = read_batch(story.directory, told.offset, told.last_steps)
            if batch.end == told.offset:
                return
            folder.mkdir(exist_ok=True)
            events = _numbers(batch.points) if told.size else _beginning(story, batch.points)
            told.size = _append(folder / EVENTS, told.size, events)
            told.offset, told.last_steps = batch.end, dict(batch.last_steps)
            told.save(folder)

    def close(self) -> None:
        """Has nothing open."""


@dataclass(kw_only=True)
class _Told:
    """How much of a journal an event file has."""

    offset: int = 0  # bytes of the journal
    size: int = 0  # bytes of the file
    last_steps: dict[str, int] = field(default_factory=dict)  # metric -> last step

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads it; nothing where the file is not as long as it should be."""
        try:
            told = cls(**json.loads((folder / TOLD).read_text(encoding="utf-8")))
            return told if (folder / EVENTS).stat().st_size >= told.size else cls()
        except (OSError, ValueError, TypeError):
            return cls()

    def save(self, folder: Path) -> None:
        """Writes it by rename."""
        write_json(folder / TOLD, self.__dict__)


def _append(path: Path, size: int, events: Iterable[Event]) -> int:
    """Writes events behind the first `size` bytes, which alone are kept; returns the size then."""
    with path.open("r+b" if size else "wb") as file:
        file.truncate(size)
        file.seek(size)
        _write(file, events)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _write(file: BinaryIO, events: Iterable[Event]) -> None:
    writer = RecordWriter(file)
    for event in events:
        writer.write(event.SerializeToString(deterministic=True))


def _beginning(story: Story, points: Sequence[Point]) -> Iterator[Event]:
    began_s = story.started_ms / 1000
    yield Event(wall_time=began_s, file_version=VERSION)
    yield Event(wall_time=began_s, summary=Summary(value=[_text("settings", story.params)]))
    yield from _numbers(points)


def _numbers(points: Sequence[Point]) -> Iterator[Event]:
    for (step, time_ms), some in groupby(points, key=lambda point: (point.step, point.time_ms)):
        values = [Summary.Value(tag=point.key, simple_value=point.value) for point in some]
        yield Event(wall_time=time_ms / 1000, step=step, summary=Summary(value=values))


def _text(tag: str, settings: Mapping[str, str]) -> Summary.Value:
    rows = (f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in settings.items())
    table = "\n".join(("| setting | value |", "|---|---|", *rows))
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary.Value(tag=tag, metadata=metadata, tensor=TensorProto(dtype=DT_STRING, string_val=[table.encode()]))
