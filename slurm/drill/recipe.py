"""The recipe that is rehearsed, as text: `slurm` knows no stage, it only names those that every installation has."""

from pathlib import Path
from typing import Any

import yaml

from orchestrator.records import record

TRAIN, CHECK = "train", "check"
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
    hang_s: float = 60.0  # without a step for so long, a rank counts as hung
    links: int = 1  # training stages, one going on with the model of the other


def write_recipe(path: Path, shape: Shape, *, tracking: str | None = None) -> Path:
    """Writes the recipe: data, training on three hosts with one rank each, a check of the result."""
    path.write_text(yaml.safe_dump(_document(shape, tracking), sort_keys=False), encoding="utf-8")
    return path


def training_stages(shape: Shape) -> list[str]:
    """Names the training stages of a recipe of this shape."""
    return [TRAIN, *(f"{TRAIN}_{number}" for number in range(2, shape.links + 1))]


def _document(shape: Shape, tracking: str | None) -> dict[str, Any]:
    small = {"cpus_per_task": 1, "memory_gb": 2}
    names = training_stages(shape)
    links = {name: _training(shape, after) for name, after in zip(names, [None, *names[:-1]], strict=True)}
    return {
        "name": "drill",
        "seed": 7,
        "tracking": {"uri": tracking, "experiment": "drill"},
        "watch": {"step_s": shape.hang_s},
        "stages": {
            "data": {"stage": "rehearsal_data", "config": {"samples": SAMPLES}, "resources": small},
            **links,
            CHECK: {
                "stage": "rehearsal_check",
                "inputs": {"model": f"{names[-1]}.model", "shards": "data.shards"},
                "resources": small,
            },
        },
    }


def _training(shape: Shape, after: str | None) -> dict[str, Any]:
    train = {
        "steps": shape.steps,
        "global_batch": GLOBAL_BATCH,
        "workers": shape.workers,
        "log_every": 1,  # each step is a metric, so that MLflow can be asked for each exactly once
        "save": {"every_steps": shape.save_every, "keep_last": 3},
        "optim": {"lr": 0.05, "warmup_steps": 2},
        "engine": {"name": "torch", "precision": "fp32"},
    }
    several = {"nodes": RANKS, "tasks_per_node": 1, "cpus_per_task": 1, "memory_gb": 2}
    return {
        "stage": "rehearsal_training",
        "inputs": {"shards": {"points": "data.shards"}, **({"model": f"{after}.model"} if after else {})},
        "config": {"step_s": shape.step_s, "train": train},
        "resources": {**several, **({"hours": shape.hours} if shape.hours else {})},
    }
