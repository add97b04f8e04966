"""torch.compile on a model: on its blocks, where a task names any, else on the whole of it."""

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from orchestrator.errors import InputError
from orchestrator.world import allow_compiler

log = logging.getLogger(__name__)


def find_parts(model: nn.Module, patterns: Sequence[str], *, key: str) -> list[nn.Module]:
    """Finds modules by patterns of their names or by the names of their classes; refuses a pattern that means none."""
    found: dict[int, nn.Module] = {}
    for pattern in patterns:
        meant = [
            part
            for name, part in model.named_modules()
            if name and (fnmatchcase(name, pattern) or type(part).__name__ == pattern)
        ]
        if not meant:
            raise InputError(f"{key}: {pattern!r} names no module of the model, nor a class of one")
        found |= {id(part): part for part in meant}
    return list(found.values())


def compile_blocks(model: nn.Module, blocks: Sequence[str], *, backend: str) -> None:
    """Compiles the forward pass of every block; blocks of one class and shape share what was compiled.

    What depends on the data (places of tokens, numbers of masks) stays outside.
    """
    allow_compiler()
    parts = find_parts(model, blocks, key="train.engine.compile")
    for part in parts:
        part.forward = torch.compile(part.forward, backend=backend)
    kinds = sorted({type(part).__name__ for part in parts})
    log.info("%d blocks (%s) are compiled by %s when they first run", len(parts), ", ".join(kinds), backend)
