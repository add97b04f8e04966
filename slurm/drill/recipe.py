"""The recipe that is rehearsed, as text: `slurm` knows no stage, it only names those that every installation has."""

from pathlib import Path
from typing import Any

import yaml

from orchestrator.records import record

RANKS = 3
SAMPLES = 240
GLOBAL_BATCH = 12


@record
class Shape:
    """How long the rehearsed training is, and how it is cut."""

    steps: int = 24
    step_s: float = 0.25
    save_every: int = 4
    hours: float | None = None
    workers: int = 0  # data processes a rank
    retry: dict[str, Any] | None = None  # the recipe's `retry:`, if not the default


def write_recipe(path: Path, shape: Shape, *, tracking: str | None = None) -> Path:
    """Writes the recipe: data, training on three hosts with one rank each, a check of the result."""
    path.write_text(yaml.safe_dump(_document(shape, tracking), sort_keys=False), encoding="utf-8")
    return path


def _document(shape: Shape, tracking: str | None) -> dict[str, Any]:
    train = {
        "steps": shape.steps,
        "global_batch": GLOBAL_BATCH,
        "workers": shape.workers,
        "log_every": 1,  # each step is a metric, so that MLflow can be asked for each exactly once
        "save": {"every_steps": shape.save_every, "keep_last": 3},
        "optim": {"lr": 0.05, "warmup_steps": 2},
        "engine": {"name": "torch", "precision": "fp32"},
    }
    small = {"cpus_per_task": 1, "memory_gb": 2}
    several = {"nodes": RANKS, "tasks_per_node": 1, **small, **({"hours": shape.hours} if shape.hours else {})}
    return {
        "name": "drill",
        "seed": 7,
        "tracking": {"uri": tracking, "experiment": "drill"},
        **({"retry": shape.retry} if shape.retry else {}),
        "stages": {
            "data": {"stage": "rehearsal_data", "config": {"samples": SAMPLES}, "resources": small},
            "train": {
                "stage": "rehearsal_training",
                "inputs": {"shards": {"points": "data.shards"}},
                "config": {"step_s": shape.step_s, "train": train},
                "resources": several,
            },
            "check": {
                "stage": "rehearsal_check",
                "inputs": {"model": "train.model", "shards": "data.shards"},
                "resources": small,
            },
        },
    }
