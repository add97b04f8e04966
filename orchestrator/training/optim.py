"""Which parameters learn, how fast, and how the learning rate moves over the steps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from orchestrator.errors import InputError
from orchestrator.training.config import LayerDecay, OptimConfig


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
    """Sorts the learning parameters into groups of equal rate, weight decay and optimizer, in model order.

    `lr_scale` is what the rate of a step is multiplied by; `muon` says which of two optimizers moves the group.
    """
    names = [name for name, _ in module.named_parameters()]
    _refuse_strangers("train.optim.lr_scales", optim.lr_scales, names)
    decays = layer_scales(names, optim.layer_decay)
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            shape = whole_shape(parameter)
            muon = optim.name == "muon" and len(shape) == 2 and not any(matches(name, p) for p in optim.muon_skips)
            scale = _scale_of(name, optim.lr_scales) * decays[name]
            decay = optim.weight_decay if len(shape) > 1 else 0.0
            if muon:  # its steps get the size AdamW's usually have, so that one rate fits both (arXiv 2502.16982)
                size = 0.2 * math.sqrt(shape[1])
                scale, decay = scale * size, decay / size
            groups.setdefault((scale, decay, muon), []).append(parameter)
    return [
        {"params": parameters, "lr": optim.lr * scale, "weight_decay": decay, "lr_scale": scale, "muon": muon}
        for (scale, decay, muon), parameters in groups.items()
    ]


def layer_scales(names: Sequence[str], decay: LayerDecay | None) -> dict[str, float]:
    """Returns each parameter's factor: 1 above the stack, factor ** (layers above it) in it, one power more below."""
    if decay is None:
        return dict.fromkeys(names, 1.0)
    start = decay.stack.removesuffix(".") + "."
    numbers = {
        name: int(rest)
        for name in names
        if name.startswith(start) and (rest := name[len(start) :].split(".")[0]).isdigit()
    }
    if not numbers:
        raise InputError(f"train.optim.layer_decay.stack: no parameter of the model is called {start}0 and so on")
    _refuse_strangers("train.optim.layer_decay.below", decay.below, names)
    last = max(numbers.values())
    powers = {name: last - number for name, number in numbers.items()}
    powers |= {n: last + 1 for n in names if n not in numbers and any(matches(n, below) for below in decay.below)}
    return {name: decay.factor ** powers.get(name, 0) for name in names}


def make_optimizer(groups: Iterable[Mapping[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
    """Makes the optimizer that a recipe asks for, over parameter groups."""
    named = [dict(group) for group in groups]
    return MuonAndAdamW(named, optim) if optim.name == "muon" else _adamw(named, optim)


def _adamw(groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps, fused=True)  # one kernel for all


class MuonAndAdamW(torch.optim.Optimizer):
    """Moves the matrices of hidden layers as Muon does, and all else as AdamW; both see the same groups and state."""

    def __init__(self, groups: list[dict[str, Any]], optim: OptimConfig) -> None:
        """Takes the groups of `parameter_groups`; those with `muon` must be matrices."""
        super().__init__(groups, {})
        self._parts: list[torch.optim.Optimizer] = []
        if mine := [group for group in self.param_groups if group["muon"]]:
            self._parts.append(torch.optim.Muon(mine, momentum=optim.momentum))
        if others := [group for group in self.param_groups if not group["muon"]]:
            self._parts.append(_adamw(others, optim))
        for part in self._parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody hands in a closure
        """Moves every group."""
        del closure
        for part in self._parts:
            part.step()


def whole_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the norm of whole gradients together, a scalar."""
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    return norm


def clip(gradients: Sequence[torch.Tensor], norm: torch.Tensor, clip_norm: float | None) -> float:
    """Scales gradients of a norm down to another, in place; returns the norm that they had."""
    if clip_norm is not None:
        torch._foreach_mul_(list(gradients), torch.clamp(clip_norm / (norm + 1e-6), max=1.0))
    return float(norm)


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """Returns a parameter's shape, also where ZeRO-3 has left only a piece of it on this rank."""
    return torch.Size(parameter.ds_shape) if is_partitioned(parameter) else parameter.shape  # type: ignore[attr-defined]  # DeepSpeed's


def is_partitioned(parameter: torch.Tensor) -> bool:
    """Tells whether ZeRO-3 keeps this parameter in pieces."""
    return "ds_tensor" in parameter.__dict__


def is_leaf(module: nn.Module) -> bool:
    """Tells whether ZeRO-3 gathers this module with all below it at once."""
    return bool(module.__dict__.get("_z3_leaf", False))


def _scale_of(name: str, scales: Mapping[str, float]) -> float:
    return next((scale for pattern, scale in scales.items() if matches(name, pattern)), 1.0)


def _refuse_strangers(key: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            tops = sorted({".".join(name.split(".")[:2]) for name in names})
            raise InputError(f"{key}: {pattern!r} names no parameter of the model; there are {', '.join(tops[:20])}")
