"""Tensors in safetensors files: a header that says what there is, then plain bytes."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.training.foreign.source import Entry

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsFile:
    """One file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        """Reads the header."""
        self.label = str(path)
        try:
            opened: Any = safe_open(path, framework="pt")  # until nobody holds this object
        except (SafetensorError, OSError) as error:
            raise DamagedArtifact(f"{path} cannot be read: {error}") from None
        self._file = opened
        self.entries: dict[str, Entry] = {}
        for name in self._file.offset_keys():  # in the order of the bytes
            part = self._file.get_slice(name)
            if part.get_dtype() not in DTYPES:
                raise InputError(f"{path}: {name} is of the type {part.get_dtype()}; read are {', '.join(DTYPES)}")
            self.entries[name] = Entry(shape=tuple(part.get_shape()), dtype=DTYPES[part.get_dtype()])

    def read(self, name: str) -> Tensor:
        """Reads one tensor."""
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise DamagedArtifact(f"{self.label} cannot be read: {error}") from None
        return tensor
