"""What the stages of a launch are, read once: until the next launch nothing of a `stage.json` changes."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.state import read_plain_stage

MOST = 1 << 14  # stages that one process remembers: whoever watches a run looks at the same ones every few seconds


@lru_cache(maxsize=MOST)
def planned_stage(folder: Path, launched: float) -> Mapping[str, Any]:  # noqa: ARG001 - it is what makes it another
    """Returns the `stage.json` in a stage's folder, as the launch that began then has written it."""
    return read_plain_stage(folder)
