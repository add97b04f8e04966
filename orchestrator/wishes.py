"""The wish of a user that a run, or a stage of it, ends: a file that whoever works on it looks for."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.artifacts import write_json

CANCEL = "cancel.json"


def ask_to_cancel(run: Path, stage: str | None, user: str) -> None:
    """Leaves word for those who work on the run, on whatever machine."""
    write_json(run / CANCEL, {"stage": stage, "user": user, "time": time.time()})


def wish_of(run: Path, stage: str) -> Mapping[str, Any] | None:
    """Returns who wished, with our command, that this stage ends ({user, time}); None if nobody did."""
    try:
        wish = json.loads((run / CANCEL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    covered = isinstance(wish, dict) and wish.get("stage") in {None, stage}
    return wish if covered else None
