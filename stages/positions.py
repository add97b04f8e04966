"""Tables of positions of image towers, brought to the grid that a model has: bicubically, as published.

The tables of CLIP's and EVA-02's towers begin with the class token's row; SAM's are a map, with lines beside it.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.training.foreign.source import Entry, TensorSource
from orchestrator.training.optim import whole_shape

log = logging.getLogger(__name__)

_ROWS, _MAP = "position_embedding.weight", "pos_embed"


class Resized:
    """Weights whose tables of positions have the sizes that a model wants, whatever sizes are stored."""

    def __init__(self, source: TensorSource, wanted: Mapping[str, Tensor]) -> None:
        """Takes the sizes from the tensors of the model that have the same last name."""
        self.label, self._source = source.label, source
        self._sizes = {
            name: size for name in source.entries for size in [_size(name, source.entries[name], wanted)] if size
        }
        self.entries = {
            name: replace(entry, shape=self._sizes.get(name, entry.shape)) for name, entry in source.entries.items()
        }

    def read(self, name: str) -> Tensor:
        """Reads one tensor, resized if need be."""
        tensor = self._source.read(name)
        return _resized(name, tensor, self._sizes[name]) if name in self._sizes else tensor


def _size(stored: str, entry: Entry, wanted: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Returns the shape that a table of positions must have; None for any other tensor, or where it has it."""
    tail = next((part for part in (_ROWS, _MAP) if stored.endswith(part)), None)
    if "rel_pos_" in stored:
        tail = ".".join(stored.split(".")[-4:])  # layers.N.attn.rel_pos_h: windows and whole maps differ
    if tail is None:
        return None
    shape = next((tuple(whole_shape(tensor)) for name, tensor in wanted.items() if name.endswith(tail)), None)
    return None if shape in {None, entry.shape} else shape


def _resized(name: str, table: Tensor, shape: tuple[int, ...]) -> Tensor:
    log.info("%s is resized from %s to %s", name, tuple(table.shape), shape)
    if name.endswith(_ROWS):  # the class token's position, then those of a square
        before, after = (round((length - 1) ** 0.5) for length in (table.shape[0], shape[0]))
        grid_1CHW = table[1:].float().view(before, before, -1).permute(2, 0, 1)[None]
        new_1CHW = functional.interpolate(grid_1CHW, size=(after, after), mode="bicubic", align_corners=False)
        return torch.cat([table[:1], new_1CHW[0].flatten(1).T.to(table.dtype)])
    if name.endswith(_MAP):
        grid_1CHW = table.float().permute(0, 3, 1, 2)
        new_1CHW = functional.interpolate(grid_1CHW, size=shape[1:3], mode="bicubic", align_corners=False)
        return new_1CHW.permute(0, 2, 3, 1).to(table.dtype)
    line_1CL = table.float().T[None]
    return functional.interpolate(line_1CL, size=shape[0], mode="linear")[0].T.to(table.dtype)
