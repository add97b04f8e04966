"""Which parameters learn, how fast, and how the learning rate moves over the steps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from orchestrator.errors import InputError
from orchestrator.training.config import OptimConfig


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Returns the learning rate of update `step` (counted from 0) of `steps`: a pure function, so nothing to save."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    passed = min(1.0, (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps))
    shapes = {"constant": 1.0, "linear": 1.0 - passed, "cosine": 0.5 * (1.0 + math.cos(math.pi * passed))}
    if optim.schedule == "constant":
        return optim.lr
    return optim.lr * (optim.min_lr_ratio + (1.0 - optim.min_lr_ratio) * shapes[optim.schedule])


def matches(name: str, pattern: str) -> bool:
    """Tells whether a pattern means this parameter: a glob over the whole name, or over a prefix that ends at a dot."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def freeze(module: nn.Module, trainable: Sequence[str]) -> None:
    """Lets exactly the parameters learn that one of the patterns names."""
    names = [name for name, _ in module.named_parameters()]
    _refuse_strangers("train.trainable", trainable, names)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(matches(name, pattern) for pattern in trainable))


def parameter_groups(module: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Sorts the learning parameters into groups of equal learning rate factor and weight decay, in model order."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    _refuse_strangers("train.optim.lr_scales", optim.lr_scales, [name for name, _ in module.named_parameters()])
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        decay = optim.weight_decay if len(whole_shape(parameter)) > 1 else 0.0
        groups.setdefault((_scale_of(name, optim.lr_scales), decay), []).append(parameter)
    return [
        {"params": parameters, "lr": optim.lr * scale, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay), parameters in groups.items()
    ]


def make_adamw(groups: Iterable[Mapping[str, Any]], optim: OptimConfig) -> torch.optim.AdamW:
    """Makes the one optimizer of the house over parameter groups, in one fused kernel."""
    return torch.optim.AdamW([dict(group) for group in groups], betas=optim.betas, eps=optim.eps, fused=True)


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """Returns a parameter's shape, also where ZeRO-3 has left only a piece of it on this rank."""
    return torch.Size(parameter.ds_shape) if is_partitioned(parameter) else parameter.shape  # type: ignore[attr-defined]  # DeepSpeed's


def is_partitioned(parameter: torch.Tensor) -> bool:
    """Tells whether ZeRO-3 keeps this parameter in pieces."""
    return "ds_tensor" in parameter.__dict__


def _scale_of(name: str, scales: Mapping[str, float]) -> float:
    return next((scale for pattern, scale in scales.items() if matches(name, pattern)), 1.0)


def _refuse_strangers(key: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            tops = sorted({".".join(name.split(".")[:2]) for name in names})
            raise InputError(f"{key}: {pattern!r} names no parameter of the model; there are {', '.join(tops[:20])}")
