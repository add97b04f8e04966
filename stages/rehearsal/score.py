"""The error of a rehearsed model over all samples, and the digests of its weights."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from orchestrator.data.reader import ShardSet
from orchestrator.training.weights import load_weights
from stages.rehearsal.points import from_members


def score(model: Path, shards: Path) -> dict[str, Any]:
    """Returns the mean square error over every sample of a set, their number, and a digest of each weight."""
    weights = load_weights(model)
    with ShardSet(shards) as samples:
        points = [from_members(*samples.read(number)) for number in range(len(samples))]
    inputs = torch.tensor([point.inputs for point in points], dtype=torch.float64)
    outputs = torch.tensor([point.outputs for point in points], dtype=torch.float64)
    guess = inputs @ weights["weight"].double().T + weights["bias"].double()
    return {
        "samples": len(points),
        "error": float((guess - outputs).square().mean()),
        "weights": {name: hashlib.sha256(w.numpy().tobytes()).hexdigest() for name, w in sorted(weights.items())},
    }
