"""How a process of a stage ended, as whoever started it saw it: `rank_R.exit.json`, if it did not end well.

The process itself leaves `rank_R.error.json`, if it comes to that. `verdict.py` joins both, of all ranks.
"""

import json
import signal
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from orchestrator.artifacts import write_json
from orchestrator.heartbeat import Hang, Pulse
from orchestrator.records import record
from orchestrator.stacks import Stand


@record
class Exit:
    """The end of one rank that did not end well."""

    rank: int
    node: str
    time: float  # seconds since 1970, of the node
    exit: int | None = None  # its exit code
    signal: str | None = None  # or the signal it died of: "SIGKILL"
    told_to_leave: bool = False  # somebody had asked it to save and leave, or had killed it, before it ended
    oom_kills: int = 0  # by the kernel of the node (or the job's memory limit) while it ran
    step: int = 0  # last seen
    phase: str = "starting"
    hang: str = ""  # "has made no step for 63 s ...": it was ended for that
    stands: str = ""  # where it stood when it hung
    waits_in: str = ""  # the collective in which it waited for its peers when it hung
    halted: str = ""  # what the kernel says of it when it hung: stopped, waiting for a disk


def made_exit(
    status: int, pulse: Pulse, *, rank: int, node: str, ended: float, told_to_leave: bool, oom_kills: int
) -> Exit:
    """Makes it from the status of `Popen.poll` (negative = signal) and the last heartbeat."""
    known = -status in set(signal.Signals)
    name = signal.Signals(-status).name if known else f"signal {-status}"
    return Exit(
        rank=rank, node=node, time=ended, exit=status if status >= 0 else None, signal=None if status >= 0 else name,
        told_to_leave=told_to_leave, oom_kills=oom_kills, step=pulse.step, phase=pulse.phase,
    )  # fmt: skip


def hung_exit(ended: Exit, hang: Hang, stand: Stand) -> Exit:
    """Adds why it was ended to the exit of a process that hung."""
    found = {"hang": str(hang), "stands": stand.place, "waits_in": stand.waits_in, "halted": stand.halted}
    return Exit(**{**asdict(ended), **found, "step": hang.step, "phase": hang.phase})


def write_exit(folder: Path, ended: Exit) -> None:
    """Writes `rank_R.exit.json` in an attempt's folder."""
    write_json(folder / f"rank_{ended.rank}.exit.json", asdict(ended))


def write_stacks(folder: Path, rank: int, stand: Stand) -> None:
    """Writes `rank_R.stacks.txt` in an attempt's folder."""
    (folder / f"rank_{rank}.stacks.txt").write_text(stand.text, encoding="utf-8")


def read_exit(folder: Path, rank: int) -> Exit | None:
    """Reads how a rank ended; None if it ended well, or went with its node."""
    plain = read_plain(folder / f"rank_{rank}.exit.json")
    names = {field.name for field in fields(Exit)}
    return Exit(**{name: value for name, value in plain.items() if name in names}) if plain else None


def read_plain(path: Path) -> Mapping[str, Any]:
    """Reads a JSON mapping; an absent or broken file holds nothing."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plain if isinstance(plain, dict) else {}
