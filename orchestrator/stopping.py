"""How a stage is asked to save and leave, how much time it has for that, and whether a save fits into it."""

import json
import logging
import math
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from orchestrator.errors import Preempted

DEADLINE = "ORCH_DEADLINE"  # when the time of the job ends, in seconds since 1970 of this node's clock
STOP = "ORCH_STOP"  # a file of this node in which whoever asks us to stop says until when
SPARE_FACTOR, SPARE_S = 1.5, 1.0  # a save takes longer when everybody saves, as at the end of a shared job

log = logging.getLogger(__name__)


class StopRequest:
    """Turns SIGTERM (and SIGUSR2, where nobody made us deaf to it) into a flag that the stage asks for between steps.

    A stage that has never asked has nothing it could save, so it is interrupted at once. Under a warden SIGUSR2 is
    ignored from the start, by this process and by every process it starts: Slurm sends it to all of a job step, and
    one that had no answer would die. The warden turns it into SIGTERM for us alone.
    """

    def __init__(self) -> None:
        """Takes over the signals for this process."""
        self._up = False
        self._asked = False
        signal.signal(signal.SIGTERM, self._receive)
        if signal.getsignal(signal.SIGUSR2) is not signal.SIG_IGN:
            signal.signal(signal.SIGUSR2, self._receive)

    def __call__(self) -> bool:
        """Tells whether somebody wants this process to save and leave."""
        self._asked = True
        return self._up

    def time_left_s(self) -> float:
        """Returns the seconds after which this process will be killed, as far as anybody has said; else infinity."""
        return min(_moment(os.environ.get(DEADLINE)), _until() if self._up else math.inf) - time.time()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        first, self._up = not self._up, True
        if first:
            log.info("asked to stop by %s", signal.Signals(number).name)
        if not self._asked:
            raise Preempted(f"asked to stop by {signal.Signals(number).name} before there was anything to save")


def lacking_s(save_s: float, left_s: float) -> float:
    """Returns how many seconds are missing for a save that took `save_s` before; not above 0 if there is time."""
    return SPARE_FACTOR * save_s + SPARE_S - left_s if save_s > 0 else -left_s


def measured_save_s(directory: Path) -> float:
    """Returns how long the slowest of the checkpoints in a stage's folder took to write; 0 if none says."""
    return max(map(_save_s, (directory / "checkpoints").glob("step_*/state.json")), default=0.0)


def _save_s(path: Path) -> float:
    try:
        said: Any = json.loads(path.read_text(encoding="utf-8"))
        return float(said.get("save_s", 0.0))
    except (OSError, ValueError, AttributeError, TypeError):  # a torn checkpoint says nothing
        return 0.0


def _until() -> float:
    try:
        return _moment(Path(os.environ[STOP]).read_text(encoding="ascii"))
    except (KeyError, OSError):
        return math.inf


def _moment(text: str | None) -> float:
    try:
        return float(text or "inf")
    except ValueError:
        return math.inf
