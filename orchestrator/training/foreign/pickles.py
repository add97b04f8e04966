"""Tensors in files of `torch.save`: mapped into memory, and unpickled by torch's reader of weights alone.

That reader builds tensors and plain values and calls nothing else. A file that asks for more is refused by the name of
what it asks for; `stand_ins` names the exceptions, and says what is built in their place.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.training.foreign.source import Held, few

SUFFIXES = (".bin", ".pth", ".pt")
WRAPPINGS = ("state_dict", "model", "module")  # under which other programs keep the weights of a file

StandIn = tuple[Any, str]  # what is built, and the full name of what the file asks for


def open_pickle(path: Path) -> Held:
    """Opens the weights of one file."""
    plain = load_plain(path)
    tensors = _tensors(plain)
    if not tensors:
        keys = few([str(key) for key in plain], 5) if isinstance(plain, Mapping) else type(plain).__name__
        raise InputError(f"{path} holds no weights by name, neither itself nor under {', '.join(WRAPPINGS)}: {keys}")
    return Held(str(path), tensors)


def load_plain(path: Path, stand_ins: Sequence[StandIn] = ()) -> Any:
    """Reads tensors and plain values; their memory is the file's, as far as its format allows."""
    if not path.is_file():
        raise DamagedArtifact(f"{path} is not there")
    # files from before torch 1.6 are no archives, so they cannot be mapped, only read
    mapped = zipfile.is_zipfile(path)
    try:
        with safe_globals(list(stand_ins)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is not opened: {_asked_for(error)}; only tensors and plain values are read from pickles. "
            "Convert it to safetensors where you trust it"
        ) from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        raise DamagedArtifact(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _asked_for(error: Exception) -> str:
    """Takes the one fact out of torch's advice how to trust the file after all."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"it asks for {found[1]}" if found is not None else "it is no pickle of weights"


def _tensors(plain: Any) -> dict[str, Tensor]:
    if not isinstance(plain, Mapping):
        return {}
    found = {str(key): value for key, value in plain.items() if isinstance(value, Tensor)}
    if found:
        return found
    for key in WRAPPINGS:
        if isinstance(plain.get(key), Mapping):
            return {str(name): value for name, value in plain[key].items() if isinstance(value, Tensor)}
    return {}
