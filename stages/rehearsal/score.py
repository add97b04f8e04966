"""The error of a rehearsed model over all samples, and the digests of its weights."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch

from orchestrator.data.reader import ShardSet
from orchestrator.errors import DamagedSample
from orchestrator.training.weights import load_weights
from stages.rehearsal.points import Point, from_members

log = logging.getLogger(__name__)


def score(model: Path, shards: Path) -> dict[str, Any]:
    """Returns the mean square error over every whole sample of a set, how many there are, a digest of each weight."""
    weights = load_weights(model)
    points, damaged = _points(shards)
    inputs = torch.tensor([point.inputs for point in points], dtype=torch.float64)
    outputs = torch.tensor([point.outputs for point in points], dtype=torch.float64)
    guess = inputs @ weights["weight"].double().T + weights["bias"].double()
    return {
        "samples": len(points),
        "damaged": damaged,
        "error": float((guess - outputs).square().mean()),
        "weights": {name: hashlib.sha256(w.numpy().tobytes()).hexdigest() for name, w in sorted(weights.items())},
    }


def _points(shards: Path) -> tuple[list[Point], int]:
    """Reads the samples of a set; counts those that are damaged."""
    points, damaged = [], 0
    with ShardSet(shards) as samples:
        for number in range(len(samples)):
            try:
                points.append(from_members(*samples.read(number)))
            except DamagedSample as error:
                log.warning("left out: %s", error)
                damaged += 1
    return points, damaged
