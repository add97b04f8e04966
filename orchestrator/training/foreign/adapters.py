"""Low-rank adapters: what PEFT stores, added to the weights they adapt, or kept beside them."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.records import record
from orchestrator.training.foreign.pickles import open_pickle
from orchestrator.training.foreign.safetensors_files import SafetensorsFile
from orchestrator.training.foreign.source import Entry, Joined, TensorSource

SETTINGS = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_LOW_RANK = re.compile(r"(?P<layer>.+)\.lora_(?P<embedding>embedding_)?(?P<part>[AB])(\.default)?(\.weight)?")
_STRANGE = re.compile(r".*(lora_|token_adapter|ia3_|prompt_)")
BLOCK_ELEMENTS = 1 << 18  # of a weight that are merged at once: what double precision costs in memory


@record
class LowRank:
    """What is added to a weight: scale x up @ down."""

    down: str  # names in the source of the adapter
    up: str
    scale: float
    transposed: bool = False  # the weight is stored inputs first


@record
class Adapter:
    """An adapter of PEFT."""

    source: TensorSource
    rank: int
    alpha: float
    added: Mapping[str, LowRank]  # name of a weight, as the model without adapters calls it
    replaced: Mapping[str, str]  # name of a weight -> the tensor of the adapter that takes its place


class Merged:
    """Weights with what adapters say about them, in as exact a type as the more exact of the two."""

    def __init__(
        self, base: TensorSource, parts: TensorSource, added: Mapping[str, LowRank], replaced: Mapping[str, str]
    ) -> None:
        """Refuses adapters for weights that are not there, or of another shape."""
        self.label = base.label if parts is base else f"{base.label} with {parts.label}"
        self._base, self._parts, self._added, self._replaced = base, parts, added, replaced
        entries = dict(base.entries)
        for name, extra in added.items():
            entries[name] = _merged_entry(name, extra, base, parts)
        for name, stored in replaced.items():
            entries[name] = _replaced_entry(name, stored, base, parts)
        self.entries: dict[str, Entry] = entries

    def read(self, name: str) -> Tensor:
        """Reads one weight and adds to it, or reads what takes its place."""
        if name in self._replaced:
            return self._parts.read(self._replaced[name])
        tensor = self._base.read(name)
        if name not in self._added:
            return tensor
        extra = self._added[name]
        down, up = (self._parts.read(part).flatten(1).double() for part in (extra.down, extra.up))
        if extra.transposed:
            down, up = up.T, down.T
        return _add(tensor, up, down, extra.scale, self.entries[name].dtype)


def _add(tensor: Tensor, up: Tensor, down: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Adds up @ down in double precision, some rows at a time."""
    merged = torch.empty(tensor.shape, dtype=dtype)
    rows, source = merged.flatten(1), tensor.flatten(1)
    step = max(1, BLOCK_ELEMENTS // max(1, rows.shape[1]))
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        rows[part] = torch.addmm(source[part].double(), up[part], down, alpha=scale)
    return merged


def read_adapter(folder: Path) -> Adapter:
    """Reads an adapter of PEFT; refuses the kinds that are more than low-rank sums, by name."""
    settings = _settings(folder)
    source = _open(folder)
    pairs: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    turned = bool(settings.get("fan_in_fan_out"))
    embeddings: set[str] = set()
    for stored in source.entries:
        plain = stored.removeprefix(_PREFIX)
        found = _LOW_RANK.fullmatch(plain)
        if found is not None:
            name = f"{found['layer']}.weight"
            pairs.setdefault(name, {})[found["part"]] = stored
            embeddings |= {name} if found["embedding"] else set()
        elif _STRANGE.match(plain):
            raise InputError(f"{folder}: {stored} is no part of a low-rank adapter that can be merged here")
        else:  # PEFT stores whole modules and biases under their plain names, its own level sometimes left in
            replaced[re.sub(r"\.(base_layer|modules_to_save\.default|original_module)(?=\.)", "", plain)] = stored
    added = {}
    for name, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise DamagedArtifact(f"{folder} has only one half of the adapter of {name}: {next(iter(pair.values()))}")
        layer = name.removesuffix(".weight")
        rank, scale = _strength(settings, layer)
        _check_rank(folder, source, pair, rank)
        added[name] = LowRank(down=pair["A"], up=pair["B"], scale=scale, transposed=turned or name in embeddings)
    alpha = float(settings["lora_alpha"])
    return Adapter(source=source, rank=settings["r"], alpha=alpha, added=added, replaced=replaced)


def merge_adapter(base: TensorSource, adapter: Adapter) -> Merged:
    """Adds an adapter to the weights it was trained on."""
    return Merged(base, adapter.source, adapter.added, adapter.replaced)


def keep_adapter(base: TensorSource, adapter: Adapter) -> TensorSource:
    """Puts an adapter beside its weights, under the names that a model with adapters in place has for them."""
    names: dict[str, str] = {}
    for name, extra in adapter.added.items():
        _merged_entry(name, extra, base, adapter.source)
        layer = name.removesuffix(".weight")
        names |= {f"{layer}.lora_A.default.weight": extra.down, f"{layer}.lora_B.default.weight": extra.up}
    return Joined(
        f"{base.label} beside {adapter.source.label}",
        [Merged(base, adapter.source, {}, adapter.replaced), Renamed(adapter.source, names)],
    )


class Renamed:
    """Some tensors of a source, under other names."""

    def __init__(self, source: TensorSource, names: Mapping[str, str]) -> None:
        """Takes new name -> stored name."""
        self.label, self._source, self._names = source.label, source, names
        self.entries = {name: source.entries[stored] for name, stored in names.items()}

    def read(self, name: str) -> Tensor:
        """Reads one tensor."""
        return self._source.read(self._names[name])


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    try:
        plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind, rank, alpha = plain["peft_type"], plain["r"], plain["lora_alpha"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    if kind != "LORA":
        raise InputError(f"{path}: peft_type {kind!r} cannot be merged; allowed: 'LORA'")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise InputError(f"{path}: r {rank!r} and lora_alpha {alpha!r} must be numbers, r above 0")
    for key in ("use_dora", "use_qalora", "lora_bias", "alora_invocation_tokens"):
        if plain.get(key):
            raise InputError(f"{path}: {key} makes an adapter more than a low-rank sum, which is not merged here")
    return plain


def _open(folder: Path) -> TensorSource:
    for name in _FILES:
        if (folder / name).is_file():
            return SafetensorsFile(folder / name) if name.endswith(".safetensors") else open_pickle(folder / name)
    raise DamagedArtifact(f"{folder} has {SETTINGS}, but none of {', '.join(_FILES)}")


def _strength(settings: Mapping[str, Any], layer: str) -> tuple[int, float]:
    """Finds rank and scale of one layer, which patterns may set apart from the rest."""
    rank, alpha = settings["r"], settings["lora_alpha"]
    for key, value in (settings.get("rank_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", layer):
            rank = value
            break
    for key, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", layer):
            alpha = value
            break
    return rank, alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _check_rank(folder: Path, source: TensorSource, pair: Mapping[str, str], rank: int) -> None:
    down, up = source.entries[pair["A"]].shape, source.entries[pair["B"]].shape
    if len(down) < 2 or len(up) < 2 or down[0] != rank or up[1] != rank:
        raise InputError(f"{folder}: {SETTINGS} says rank {rank}, but {pair['A']} is {down} and {pair['B']} is {up}")


def _merged_entry(name: str, extra: LowRank, base: TensorSource, parts: TensorSource) -> Entry:
    if name not in base.entries:
        raise InputError(f"{parts.label} adapts {name}, which {base.label} does not have")
    for part in (extra.down, extra.up):
        if part not in parts.entries:
            raise DamagedArtifact(f"{parts.label} lacks {part}")
    weight, down, up = base.entries[name], parts.entries[extra.down], parts.entries[extra.up]
    outer, inner = (down, up) if extra.transposed else (up, down)
    outputs = outer.shape[1] if extra.transposed else outer.shape[0]
    inputs = inner.shape[:1] if extra.transposed else inner.shape[1:]
    if (outputs, *inputs) != weight.shape or down.shape[0] != up.shape[1] or math.prod(up.shape[2:]) != 1:
        raise InputError(
            f"{name} is {weight.shape} in {base.label}, which {extra.down} {down.shape} and {extra.up} {up.shape} of "
            f"{parts.label} do not fit"
        )
    dtype = torch.promote_types(weight.dtype, torch.promote_types(down.dtype, up.dtype))
    return Entry(shape=weight.shape, dtype=dtype)


def _replaced_entry(name: str, stored: str, base: TensorSource, parts: TensorSource) -> Entry:
    new, old = parts.entries[stored], base.entries.get(name)
    if old is None:
        raise InputError(f"{parts.label} has {stored} to replace {name}, which {base.label} does not have")
    # new tokens make embeddings and heads longer: nothing else of a weight may change
    if new.shape[1:] != old.shape[1:] or (new.shape != old.shape and len(new.shape) != 2):
        raise InputError(f"{stored} of {parts.label} is {new.shape}, {name} of {base.label} is {old.shape}")
    return new
