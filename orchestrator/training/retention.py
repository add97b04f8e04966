"""Which checkpoints of a folder are whole, and which of them stay. No torch.

Layout: `step_########/{weights/, optimizer/, state.json, manifest.json}`; a folder gets this name by rename, when done.
"""

import json
import logging
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.artifacts import MANIFEST
from orchestrator.records import record
from orchestrator.training.config import SaveConfig

CHECKPOINTS = "checkpoints"
STATE = "state.json"
_NAME = re.compile(r"step_(\d{8,})")
_LEFT_OVER = (".step_*.draft", ".step_*.old")

log = logging.getLogger(__name__)


@record
class Kept:
    """A whole checkpoint, and what was measured when it was saved."""

    step: int
    path: Path
    metrics: Mapping[str, float]


def checkpoint_path(directory: Path, step: int) -> Path:
    """Names the folder of the checkpoint of a step."""
    return directory / f"step_{step:08d}"


def newest(directory: Path, fingerprint: str) -> tuple[int, Path] | None:
    """Finds the newest whole checkpoint of the stage with this fingerprint."""
    return next(whole_checkpoints(directory, fingerprint), None)


def whole_checkpoints(directory: Path, fingerprint: str) -> Iterator[tuple[int, Path]]:
    """Yields step and folder of every whole checkpoint, newest first; says why it passes over the others."""
    named = [(int(match[1]), path) for path in directory.glob("step_*") if (match := _NAME.fullmatch(path.name))]
    for step, path in sorted(named, reverse=True):
        if fault := _fault(path, fingerprint):
            log.warning("passing over checkpoint %s: %s", path, fault)
        else:
            yield step, path


def retire(directory: Path, fingerprint: str, rules: SaveConfig) -> None:
    """Removes the checkpoints that no rule keeps. Raises OSError."""
    found = [Kept(step=s, path=p, metrics=metrics_of(p)) for s, p in whole_checkpoints(directory, fingerprint)]
    stay = kept_steps(found, rules)
    for one in found:
        if one.step not in stay:
            aside = one.path.with_name(f".{one.path.name}.old")
            one.path.replace(aside)  # first: a killed process must not leave half of one under its name
            shutil.rmtree(aside)


def kept_steps(found: Sequence[Kept], rules: SaveConfig) -> set[int]:
    """Chooses the steps that stay: the last few, every n-th, the best few by a metric (of equals the later)."""
    steps = sorted((one.step for one in found), reverse=True)
    stay = set(steps[: rules.keep_last])
    if rules.keep_every is not None:
        stay |= {step for step in steps if step % rules.keep_every == 0}
    if (best := rules.keep_best) is not None:
        sign = 1 if best.mode == "min" else -1
        told = [one for one in found if math.isfinite(one.metrics.get(best.metric, math.nan))]
        told.sort(key=lambda one: (sign * one.metrics[best.metric], -one.step))
        stay |= {one.step for one in told[: best.count]}
    return stay


def metrics_of(path: Path) -> dict[str, float]:
    """Reads what was measured when a checkpoint was saved; nothing where it does not say."""
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
        return {name: float(value) for name, value in state.get("metrics", {}).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def clear_left_over(directory: Path) -> None:
    """Removes what killed processes left of checkpoints that never were, or no longer are. Raises OSError."""
    for pattern in _LEFT_OVER:
        for left_over in directory.glob(pattern):
            shutil.rmtree(left_over)


def written_digests(path: Path) -> dict[str, str]:
    """Returns the checksums that a checkpoint's files had when it was written; none of one that is older than they."""
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    digests: dict[str, str] = manifest.get("xxh3", {})
    return digests


def _fault(path: Path, fingerprint: str) -> str:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, size in manifest["files"].items():
            held = (path / name).stat().st_size
            if held != size:
                return f"{name} has {held} bytes instead of {size}"
    except (OSError, ValueError, KeyError) as error:
        return f"it is torn ({error})"
    return "" if manifest["fingerprint"] == fingerprint else "it was made by another plan of this stage"
