"""Weights in DeepSpeed's own checkpoints, ZeRO 0 to 3: put together tensor by tensor from what each rank left.

ZeRO-1 and 2 cut one flat fp32 vector a parameter group over the ranks; ZeRO-3 cuts each parameter into equal, padded
runs. Frozen weights and buffers lie in the files of model states. What is not partitioned is mapped, not read.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.records import record
from orchestrator.training.foreign.pickles import StandIn, load_plain
from orchestrator.training.foreign.source import Entry, entry_of, few

_LATEST = "latest"
_MODEL, _OPTIMIZER = "*_model_states.pt", "*_optim_states.pt"
# name of a file of this kind -> why its weights cannot be put together here
_REFUSED = {
    r"(?!.*mp_rank_00).*mp_rank_\d+.*": "tensor parallelism",
    r"layer_\d+.*": "pipeline parallelism",
    r"(layer_\d+_)?expert_\d+.*": "experts over ranks",
}
_AUTO_EXPERTS = ("ds_autoep_layers", "autoep_layers")


class _Forgotten:
    """Stands in for an object of DeepSpeed's that nobody needs; keeps nothing of it."""

    def __setstate__(self, state: object) -> None:
        """Forgets."""


# all that DeepSpeed's checkpoints ask for beyond tensors and plain values; none of DeepSpeed's code runs
STAND_INS: Sequence[StandIn] = (
    (_Forgotten, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Forgotten, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (_Forgotten, "deepspeed.utils.tensor_fragment.fragment_address"),
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
)


@record
class _Run:
    """Elements of a flat vector of one rank that belong to a tensor."""

    flat: Tensor
    start: int
    length: int


@record
class _Cut:
    """A tensor and the runs that make it up, in order; padding comes last."""

    entry: Entry
    runs: tuple[_Run, ...]


class ZeroCheckpoint:
    """The weights of one checkpoint: fp32 where they learned, as they were where they were frozen."""

    def __init__(self, label: str, cuts: Mapping[str, _Cut]) -> None:
        """Takes what was found out about the files."""
        self.label, self._cuts = label, cuts
        self.entries = {name: cut.entry for name, cut in cuts.items()}

    def read(self, name: str) -> Tensor:
        """Puts one tensor together."""
        cut = self._cuts[name]
        pieces = [run.flat.reshape(-1)[run.start : run.start + run.length] for run in cut.runs]
        flat = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return flat[: prod(cut.entry.shape)].view(cut.entry.shape)


def looks_like_zero(path: Path) -> bool:
    """Tells whether a folder is a checkpoint of DeepSpeed, or holds one that its `latest` names."""
    return (path / _LATEST).is_file() or any(path.glob(_MODEL))


def open_zero(path: Path) -> ZeroCheckpoint:
    """Opens a checkpoint; refuses one that lacks files, or that was cut in ways which are not undone here."""
    folder = _tagged(path)
    models, optimizers = (sorted(folder.glob(pattern), key=_natural) for pattern in (_MODEL, _OPTIMIZER))
    _refuse_other_cuts(folder)
    if not models:
        raise DamagedArtifact(f"{folder} lacks {_MODEL}")
    states = [load_plain(file, STAND_INS) for file in models]
    for file, state in zip(models, states, strict=True):
        if not isinstance(state, Mapping) or "module" not in state or "buffer_names" not in state:
            raise DamagedArtifact(f"{file} is no file of model states: it lacks module or buffer_names")
        if any(state.get(key) for key in _AUTO_EXPERTS):
            raise InputError(f"{file}: weights cut by experts over ranks are not put together here")
    if not optimizers:  # ZeRO-0 keeps its optimizer elsewhere, and whole weights in the module
        return ZeroCheckpoint(str(folder), dict(_module_cuts(states[0], skip=())))
    optimizer = _Optimizer.read(folder, optimizers)
    if optimizer.stage == 3 and len(models) != len(optimizers):
        raise DamagedArtifact(f"{folder} has {len(models)} files {_MODEL} for {len(optimizers)} ranks")
    return ZeroCheckpoint(str(folder), _all_cuts(folder, states, optimizer))


@record
class _Optimizer:
    """The fp32 weights that each rank held: rank -> group -> flat vector."""

    stage: int
    flats: tuple[tuple[Tensor, ...], ...]
    paddings: Sequence[Sequence[int]] | None  # after each parameter of a group, in ZeRO-1 and 2

    @classmethod
    def read(cls, folder: Path, files: Sequence[Path]) -> "_Optimizer":
        found = [_optimizer_state(file) for file in files]
        stage, ranks = found[0]["zero_stage"], found[0]["partition_count"]
        ranks = max(ranks) if isinstance(ranks, list) else ranks
        if ranks != len(files):
            raise DamagedArtifact(f"{folder} was written by {ranks} ranks, but has {len(files)} files {_OPTIMIZER}")
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        flats = []
        for file, state in zip(files, found, strict=True):
            if key not in state:
                raise DamagedArtifact(f"{file} lacks {key}")
            groups = state[key]
            flats.append((groups,) if isinstance(groups, Tensor) else tuple(groups))
        return cls(stage=stage, flats=tuple(flats), paddings=found[0].get("param_alignment_paddings"))


def _optimizer_state(file: Path) -> Mapping[str, Any]:
    state = load_plain(file, STAND_INS)
    inner = state.get("optimizer_state_dict") if isinstance(state, Mapping) else None
    if not isinstance(inner, Mapping) or not {"zero_stage", "partition_count"} <= set(inner):
        raise DamagedArtifact(f"{file} is no file of ZeRO's optimizer states: it lacks zero_stage or partition_count")
    return inner


def _all_cuts(folder: Path, states: Sequence[Mapping[str, Any]], optimizer: _Optimizer) -> dict[str, _Cut]:
    shapes: Any = states[0].get("param_shapes") or []
    groups: list[Mapping[str, Any]] = [shapes] if isinstance(shapes, Mapping) else list(shapes)
    ranks = len(optimizer.flats)
    if optimizer.stage == 3:
        cuts = dict(_stage3_cuts(folder, groups, optimizer))
        cuts |= dict(_frozen_cuts(states, ranks))
        cuts |= {name: cut for name, cut in _module_cuts(states[0], skip=cuts) if name in states[0]["buffer_names"]}
    else:
        cuts = dict(_stage12_cuts(folder, groups, optimizer))
        cuts |= dict(_frozen_cuts(states[:1], 1))
        # what learned is in the module too, but rounded; what is only there, the converter of DeepSpeed loses
        cuts |= dict(_module_cuts(states[0], skip=cuts))
    for name, source in (states[0].get("shared_params") or {}).items():
        if source in cuts:
            cuts[name] = cuts[source]
    return cuts


def _stage12_cuts(
    folder: Path, groups: Sequence[Mapping[str, Any]], optimizer: _Optimizer
) -> Iterator[tuple[str, _Cut]]:
    """Walks along each group's vector, which the ranks hold end to end."""
    ranks = len(optimizer.flats)
    if any(len(flats) != len(groups) for flats in optimizer.flats):
        raise DamagedArtifact(f"{folder} has {len(groups)} parameter groups, but other numbers of flat vectors")
    for number, shapes in enumerate(groups):
        flats = [flats[number] for flats in optimizer.flats]
        paddings = optimizer.paddings[number] if optimizer.paddings is not None else [0] * len(shapes)
        if len(paddings) != len(shapes):
            raise DamagedArtifact(f"{folder}: group {number} has {len(shapes)} parameters and {len(paddings)} paddings")
        held, offset = sum(flat.numel() for flat in flats), 0
        for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
            length = prod(shape)
            if offset + length > held:
                raise DamagedArtifact(f"{folder}: group {number} ends inside {name}: {held} elements are stored")
            runs = tuple(_overlaps(flats, offset, length))
            yield name, _Cut(entry=Entry(shape=tuple(shape), dtype=flats[0].dtype), runs=runs)
            offset += length + padding
        # the vector is padded to a multiple of twice the ranks, and some versions drop that padding again
        multiple = 2 * ranks
        if ceil(offset / multiple) != ceil(held / multiple):
            raise DamagedArtifact(f"{folder}: group {number} needs {offset} elements, {held} are stored")


def _stage3_cuts(
    folder: Path, groups: Sequence[Mapping[str, Any]], optimizer: _Optimizer
) -> Iterator[tuple[str, _Cut]]:
    """Walks along what each rank holds, all its groups end to end: an equal run of every parameter."""
    ranks, offset = len(optimizer.flats), 0
    held = min(sum(flat.numel() for flat in flats) for flats in optimizer.flats)
    for shapes in groups:
        for name, shape in shapes.items():
            length = ceil(prod(shape) / ranks)
            if offset + length > held:
                raise DamagedArtifact(f"{folder}: a rank's vectors end inside {name}: {held} elements are stored")
            runs = tuple(run for flats in optimizer.flats for run in _overlaps(flats, offset, length))
            yield name, _Cut(entry=Entry(shape=tuple(shape), dtype=optimizer.flats[0][0].dtype), runs=runs)
            offset += length
    if offset != held:
        raise DamagedArtifact(f"{folder}: the parameters need {offset} elements of each rank, {held} are stored")


def _overlaps(flats: Sequence[Tensor], offset: int, length: int) -> Iterator[_Run]:
    """Finds the runs that make up a stretch of vectors laid end to end."""
    first = 0
    for flat in flats:
        start, end = max(offset, first), min(offset + length, first + flat.numel())
        if start < end:
            yield _Run(flat=flat, start=start - first, length=end - start)
        first += flat.numel()
    if length == 0:
        yield _Run(flat=flats[0], start=0, length=0)


def _frozen_cuts(states: Sequence[Mapping[str, Any]], ranks: int) -> Iterator[tuple[str, _Cut]]:
    """Finds the frozen weights; older versions, and runs that were told so, saved none."""
    for name, shape in (states[0].get("frozen_param_shapes") or {}).items():
        fragments: list[Any] = [(state.get("frozen_param_fragments") or {}).get(name) for state in states[:ranks]]
        if all(isinstance(fragment, Tensor) for fragment in fragments):
            runs = tuple(_Run(flat=fragment, start=0, length=fragment.numel()) for fragment in fragments)
            yield name, _Cut(entry=Entry(shape=tuple(shape), dtype=fragments[0].dtype), runs=runs)


def _module_cuts(state: Mapping[str, Any], skip: Mapping[str, Any] | Sequence[str]) -> Iterator[tuple[str, _Cut]]:
    for name, tensor in (state["module"] or {}).items():
        if isinstance(tensor, Tensor) and name not in skip:
            yield name, _Cut(entry=entry_of(tensor), runs=(_Run(flat=tensor, start=0, length=tensor.numel()),))


def _tagged(path: Path) -> Path:
    if not (path / _LATEST).is_file():
        return path
    tag = (path / _LATEST).read_text(encoding="utf-8").strip()
    if not tag or Path(tag).name != tag or not (path / tag).is_dir():
        raise DamagedArtifact(f"{path / _LATEST} names {tag!r}, which is no folder beside it")
    return path / tag


def _refuse_other_cuts(folder: Path) -> None:
    names = sorted(file.name for file in folder.glob("*_states.pt"))
    for pattern, reason in _REFUSED.items():
        if found := [name for name in names if re.fullmatch(pattern, name)]:
            raise InputError(f"{folder} was cut by {reason}, which is not undone here: {few(found)}")


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts rank 10 after rank 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]
