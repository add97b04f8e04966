"""The logs of a stage: which files those are, and many of them read as one."""

import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError
from orchestrator.redaction import Screen

CHUNK_BYTES = 1 << 14  # of each of thousands of ranks
RANK_LOG = re.compile(r"rank_(\d+)\.log")
STAMP = re.compile(rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?")


class Log:
    """A file that grows. It is opened for each look only: thousands of them are followed at once."""

    def __init__(self, path: Path, label: str) -> None:
        """Starts at the beginning; `label` stands before each line."""
        self.path = path
        self.label = label.encode()
        self._read = 0
        self._piece = b""  # of a line that is not whole yet
        self._stamp = b""

    def lines(self, *, to_the_end: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Yields what is new, as (stamp, line); a line without a stamp of its own has that of the line before."""
        while chunk := self._chunk():
            *whole, self._piece = (self._piece + chunk).split(b"\n")
            yield from map(self._stamped, whole)
        if to_the_end and self._piece:
            last, self._piece = self._piece, b""
            yield self._stamped(last)

    def _stamped(self, line: bytes) -> tuple[bytes, bytes]:
        found = STAMP.match(line)
        self._stamp = found[0] if found else self._stamp
        return self._stamp, self.label + line

    def _chunk(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                chunk = file.read(CHUNK_BYTES)
        except OSError:  # not there yet, or not visible on this host yet
            return b""
        self._read += len(chunk)
        return chunk


def merged(logs: Sequence[Log], *, to_the_end: bool = False) -> Iterator[str]:
    """Yields the new lines of all logs, in the order of their stamps as far as they have any; without secrets.

    Ranks hide what they print themselves; what other programs print into their logs is hidden here.
    """
    screen = Screen()
    streams = [log.lines(to_the_end=to_the_end) for log in logs]
    for _, line in heapq.merge(*streams, key=lambda stamped: stamped[0]):
        yield screen.text(line.decode("utf-8", errors="replace")) + "\n"


class AttemptLogs:
    """All logs of one attempt, or that of one rank; new ones join as ranks start."""

    def __init__(self, stage: Path, attempt: Mapping[str, Any], rank: int | None) -> None:
        """Names the attempt; nothing is read yet."""
        self.number: int = attempt["number"]
        self._stage = stage
        self._job_id = attempt["job_id"]
        self._rank = rank
        self._logs: dict[Path, Log] = {}

    def read(self, *, to_the_end: bool) -> Iterator[str]:
        """Yields what is new. Where no rank ever started, what the job itself printed says why."""
        self._look()
        if to_the_end and not self._logs and self._rank is None:
            paths = job_logs(self._stage, self.number, self._job_id)
            self._logs = {path: Log(path, f"[{path.name}] ") for path in paths}
        yield from merged(list(self._logs.values()), to_the_end=to_the_end)

    def paths(self) -> list[Path]:
        """Lists the files."""
        self._look()
        return list(self._logs)

    def _look(self) -> None:
        logs = rank_logs(self._stage, self.number)
        several = len(logs) > 1 and self._rank is None
        if several and len(self._logs) == 1:  # the one that was alone so far is one of many now
            for number, path in logs.items():
                if path in self._logs:
                    self._logs[path].label = f"[rank {number}] ".encode()
        for number, path in logs.items():
            if self._rank in {None, number} and path not in self._logs:
                self._logs[path] = Log(path, f"[rank {number}] " if several else "")


def rank_logs(stage: Path, attempt: int) -> dict[int, Path]:
    """Returns the logs of an attempt by rank."""
    found = ((RANK_LOG.fullmatch(path.name), path) for path in (stage / "logs" / f"attempt_{attempt}").glob("rank_*"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def job_logs(stage: Path, attempt: int, job_id: str) -> list[Path]:
    """Lists what the keeper of an attempt's job printed, and what the cluster put beside it."""
    keeper = stage / "logs" / f"attempt_{attempt}" / "keeper.log"
    found = [*([keeper] if keeper.is_file() else []), *stage.glob(f"slurm/{job_id}_*log.*")]
    return [path for path in found if path.stat().st_size > 0]


def chosen_attempt(stage: Mapping[str, Any], attempt: int | None) -> Mapping[str, Any] | None:
    """Returns the attempt that is meant, by default the last one; None before the first."""
    attempts: dict[int, Mapping[str, Any]] = {entry["number"]: entry for entry in stage["attempts"]}
    if attempt is None:
        return attempts[max(attempts)] if attempts else None
    if attempt not in attempts:
        raise InputError(f"--attempt: {stage['name']} has no attempt {attempt}; it has {_listed(list(attempts))}")
    return attempts[attempt]


def refuse_unknown_rank(directory: Path, stage: Mapping[str, Any], attempt: Mapping[str, Any], rank: int) -> None:
    """Says which ranks there are, to whoever asks for another."""
    known = list(rank_logs(directory / stage["name"], attempt["number"]))
    if rank not in known:
        number, name = attempt["number"], stage["name"]
        raise InputError(f"--rank: attempt {number} of {name} has no rank {rank}; it has {_listed(known)}")


def log_to_blame(directory: Path, stage: Mapping[str, Any]) -> Path | None:
    """Returns the log that says most about how the last attempt ended: of the rank that failed, or of rank 0."""
    attempt = chosen_attempt(stage, None)
    if attempt is None:
        return None
    folder = directory / stage["name"]
    logs = rank_logs(folder, attempt["number"])
    if logs:
        return logs.get(attempt["rank"] or 0, next(iter(logs.values())))
    return next(iter(job_logs(folder, attempt["number"], attempt["job_id"])), None)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers) or "none"
