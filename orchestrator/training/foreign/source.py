"""What any collection of stored tensors can be asked: which there are, at no cost, and one of them at a time."""

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from orchestrator.errors import DamagedArtifact
from orchestrator.records import record


@record
class Entry:
    """What is known of a stored tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Returns how much memory it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorSource(Protocol):
    """Stored tensors by name."""

    @property
    def label(self) -> str:
        """Returns what messages call it: a path, in most cases."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Lists the tensors without reading them, in the order in which they are best read."""

    def read(self, name: str) -> Tensor:
        """Reads one tensor. The caller must not write to it: it may be the file itself, mapped into memory."""


class Held:
    """Tensors that are in memory already, or mapped into it."""

    def __init__(self, label: str, tensors: Mapping[str, Tensor]) -> None:
        """Takes them as they are."""
        self.label, self._tensors = label, tensors
        self.entries = {name: entry_of(tensor) for name, tensor in tensors.items()}

    def read(self, name: str) -> Tensor:
        """Returns the tensor."""
        return self._tensors[name]


class Joined:
    """Several sources as one; no two have a tensor of one name."""

    def __init__(self, label: str, parts: list[TensorSource]) -> None:
        """Refuses a name that two parts have: nobody could say which is meant."""
        self.label = label
        self._part_of: dict[str, TensorSource] = {}
        for part in parts:
            for name in part.entries:
                if name in self._part_of:
                    raise DamagedArtifact(f"{name} is in {self._part_of[name].label} and in {part.label}")
                self._part_of[name] = part
        self.entries = {name: part.entries[name] for name, part in self._part_of.items()}

    def read(self, name: str) -> Tensor:
        """Reads one tensor from the part that has it."""
        return self._part_of[name].read(name)


def entry_of(tensor: Tensor) -> Entry:
    """Describes a tensor."""
    return Entry(shape=tuple(tensor.shape), dtype=tensor.dtype)


def few(names: list[str], most: int = 3) -> str:
    """Names some of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
