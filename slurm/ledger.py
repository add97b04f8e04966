"""Remembers across runs what happened on which node of a cluster: a file that is only ever appended to."""

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.records import record

log = logging.getLogger(__name__)


@record
class Incident:
    """One thing that happened on a node."""

    node: str
    cause: str  # a failure class of interface.md, or UNFIT
    detail: str
    run: str
    time: float  # seconds since 1970
    expires: float  # from then on it counts for nothing


class Ledger:
    """The incidents of one cluster, written by the jobs and launches of everybody who shares the file."""

    def __init__(self, path: Path) -> None:
        """Names the file; nothing is read or written yet."""
        self.path = path

    def add(self, incident: Incident, *, once: bool = False) -> None:
        """Appends an incident; with `once` only if this was not told of this node and run, whoever else is at it."""
        self._append({"event": "incident", **asdict(incident)}, unless=lambda: once and self._knows(incident))

    def clear(self, node: str, user: str) -> None:
        """Forgets everything about a node up to now; "*" means every node."""
        self._append({"event": "clear", "node": node, "user": user, "time": time.time()})

    def incidents(self) -> list[Incident]:
        """Lists what counts today, in the order in which it was written."""
        counting: list[Incident] = []
        for entry in self._entries():
            node = str(entry.get("node", ""))
            if entry.get("event") == "clear":
                # by place in the file, not by time: the clocks of those who write it differ
                counting = [incident for incident in counting if node not in {"*", incident.node}]
            elif entry.get("event") == "incident" and node:
                counting.extend(_incident(node, entry))
        return [incident for incident in counting if incident.expires > time.time()]

    def _knows(self, incident: Incident) -> bool:
        told = (incident.node, incident.detail, incident.run)
        return told in {(one.node, one.detail, one.run) for one in self.incidents()}

    def _append(self, entry: Mapping[str, Any], *, unless: Callable[[], bool] = lambda: False) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        with self.path.open("ab") as file:
            with contextlib.suppress(OSError):  # a file system without locks: one write of one line is still one piece
                fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            if unless():  # asked under the lock
                return
            os.write(file.fileno(), line if _ends_whole(self.path) else b"\n" + line)

    def _entries(self) -> Iterator[dict[str, Any]]:
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("the ledger of bad nodes cannot be read: %s", error)
            return
        for line in text.splitlines():
            with contextlib.suppress(ValueError):  # torn: whoever wrote it was killed, or the disk was full
                entry = json.loads(line)
                if isinstance(entry, dict):
                    yield entry


def by_node(incidents: Sequence[Incident]) -> dict[str, list[Incident]]:
    """Groups incidents by their node, in the order of names."""
    grouped: dict[str, list[Incident]] = {}
    for incident in sorted(incidents, key=lambda one: (one.node, one.time)):
        grouped.setdefault(incident.node, []).append(incident)
    return grouped


def _incident(node: str, entry: Mapping[str, Any]) -> Iterator[Incident]:
    texts = {name: str(entry.get(name, "")) for name in ("cause", "detail", "run")}
    with contextlib.suppress(KeyError, TypeError, ValueError):
        yield Incident(node=node, time=float(entry["time"]), expires=float(entry["expires"]), **texts)


def _ends_whole(path: Path) -> bool:
    """Tells whether the last line is whole; asked under the lock."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
