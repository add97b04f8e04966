"""What this rank holds of weights and optimizer state, as live views: to save from, and to load into.

A plain replica holds everything; ZeRO-1 and ZeRO-2 cut the optimizer's flat buffer, so a rank holds any run of a
parameter or none; ZeRO-3 cuts every parameter into equal runs.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from orchestrator.training import elastic, writing
from orchestrator.training.elastic import WEIGHTS, Piece
from orchestrator.world import World

Held = dict[str, list[Piece]]  # folder of a checkpoint -> what this rank writes into it

OPTIMIZER = "optimizer"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_MUON_MOMENTS = ("momentum_buffer",)


class Holdings(Protocol):
    """Where the fp32 weights and the moments of the learning parameters lie."""

    def begin(self, step: int) -> None:
        """Creates the optimizer state where there was no step yet, and sets its step."""

    def weights(self) -> Iterator[Piece]:
        """Yields every parameter: in fp32 where it learns, as it is where it is frozen."""

    def moments(self) -> Iterator[Piece]:
        """Yields the moments of every learning parameter, and what else an optimizer must know to go on."""

    def working(self) -> Iterator[Piece]:
        """Yields the parameters the model computes with, where `weights` are others and `refresh` cannot reach them."""

    def refresh(self) -> None:
        """Carries freshly loaded weights over to the ones the model computes with. Collective: every rank must call."""


def held(module: nn.Module, holdings: Holdings, world: World, *, step: int) -> Held:
    """Returns what this rank writes of a checkpoint after `step` steps: of all ranks together, each element once.

    Weights and moments are live: they are as they were until the next step changes them. Buffers are copies, as the
    forward pass may change them.
    """
    holdings.begin(step)
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    weights = [replace(piece, frozen=piece.name in frozen) for piece in holdings.weights()]
    buffers = [elastic.whole(name, buffer.clone()) for name, buffer in saved_buffers(module)]
    return {WEIGHTS: _shared([*weights, *buffers], world), OPTIMIZER: _shared(holdings.moments(), world)}


def save_weights(directory: Path, module: nn.Module, weights: Iterable[Piece], world: World) -> None:
    """Writes weights and the model's buffers, each element once over all ranks. Collective: every rank must call."""
    buffers = (elastic.whole(name, buffer) for name, buffer in saved_buffers(module))
    writing.write(directory, _shared([*weights, *buffers], world), world)


def load(directory: Path, module: nn.Module, holdings: Holdings, *, step: int) -> None:
    """Reads what was `held` after `step` steps, on any number of ranks. Collective: every rank must call."""
    holdings.begin(step)
    buffers = [elastic.whole(name, buffer) for name, buffer in saved_buffers(module)]
    elastic.read(directory / WEIGHTS, [*holdings.weights(), *buffers])
    elastic.read(directory / WEIGHTS, holdings.working())
    elastic.read(directory / OPTIMIZER, holdings.moments())
    holdings.refresh()


def saved_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the buffers that belong to a checkpoint, by their full names."""
    for prefix, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:  # noqa: SLF001 - torch offers no other way to ask
                yield f"{prefix}.{name}" if prefix else name, buffer


def _shared(pieces: Iterable[Piece], world: World) -> list[Piece]:
    return [elastic.share(piece, world) for piece in pieces]


class Replicated:
    """Everything on every rank: the plain torch engine, and ZeRO-0."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Looks at a model and the optimizer of its learning parameters."""
        self._named = dict(module.named_parameters())
        self._optimizer = optimizer
        self._keys = {
            parameter: _MUON_MOMENTS if group["muon"] else _MOMENTS
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    def begin(self, step: int) -> None:
        """Creates the optimizer state where there was no step yet, and sets its step."""
        for parameter, keys in self._keys.items():
            _begin(self._optimizer, [parameter], step, keys)

    def weights(self) -> Iterator[Piece]:
        """Yields every parameter."""
        for name, parameter in self._named.items():
            yield elastic.whole(name, parameter)

    def moments(self) -> Iterator[Piece]:
        """Yields the moments of every learning parameter: both of AdamW's, or Muon's one."""
        for name, parameter in self._named.items():
            if parameter.requires_grad:
                state = self._optimizer.state[parameter]
                yield from (elastic.whole(f"{name}.{key}", state[key]) for key in self._keys[parameter])

    def working(self) -> Iterator[Piece]:
        """Yields nothing: the weights are the ones the model computes with."""
        yield from ()

    def refresh(self) -> None:
        """Has nothing to carry over."""


class Stage12:
    """ZeRO-1 and ZeRO-2: whole parameters to compute with, this rank's part of the flat fp32 copy to learn with."""

    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        """Looks at a model and what DeepSpeed wrapped around its optimizer."""
        self._named = dict(module.named_parameters())
        self._inner: torch.optim.Optimizer = optimizer.optimizer

    def begin(self, step: int) -> None:
        """Creates the optimizer state where there was no step yet, and sets its step."""
        _begin(self._inner, (flat for group in self._inner.param_groups for flat in group["params"]), step)

    def weights(self) -> Iterator[Piece]:
        """Yields every parameter: in fp32 where it learns, as it is where it is frozen."""
        for name, parameter in self._named.items():
            yield self._piece(name, name, None) if parameter.requires_grad else elastic.whole(name, parameter)

    def moments(self) -> Iterator[Piece]:
        """Yields both moments of every learning parameter."""
        for name, parameter in self._named.items():
            if parameter.requires_grad:
                yield from (self._piece(name, f"{name}.{key}", key) for key in _MOMENTS)

    def working(self) -> Iterator[Piece]:
        """Yields the whole learning parameters: what other ranks hold in fp32, this one needs too."""
        for name, parameter in self._named.items():
            if parameter.requires_grad:
                yield elastic.whole(name, parameter)

    def refresh(self) -> None:
        """Has nothing to carry over: the parameters to compute with were read themselves."""

    def _piece(self, name: str, label: str, key: str | None) -> Piece:
        parameter = self._named[name]
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # noqa: SLF001 - DeepSpeed's own link to the fp32 copy
        if mapping is None:
            return Piece(label, tuple(parameter.shape), 0, torch.empty(0))
        local: Tensor = mapping.hp_fragment
        if key is not None:
            flat = self._inner.param_groups[mapping.param_group_index]["params"][0]
            place = mapping.hp_fragment_address
            local = self._inner.state[flat][key].narrow(0, place.start, place.numel)
        return Piece(label, tuple(parameter.shape), mapping.lp_fragment_address.start, local.detach())


class Stage3:
    """ZeRO-3: an equal run of every parameter."""

    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        """Looks at a model and what DeepSpeed wrapped around its optimizer."""
        self._named = dict(module.named_parameters())
        self._optimizer = optimizer
        groups: Sequence[Tensor] = optimizer.fp32_partitioned_groups_flat
        muon: Sequence[bool] = optimizer.sub_groups_using_muon if optimizer.use_muon else [False] * len(groups)
        self._keys = [_MUON_MOMENTS if turned else _MOMENTS for turned in muon]

    def begin(self, step: int) -> None:
        """Creates the optimizer state where there was no step yet, and sets its step."""
        for flat, keys in zip(self._optimizer.fp32_partitioned_groups_flat, self._keys, strict=True):
            _begin(self._optimizer.optimizer, [flat], step, keys)

    def weights(self) -> Iterator[Piece]:
        """Yields every parameter: in fp32 where it learns, as it is where it is frozen."""
        for name, parameter in self._named.items():
            yield self._piece(name, name, None) if parameter.requires_grad else elastic.held(name, parameter)

    def moments(self) -> Iterator[Piece]:
        """Yields the moments of every learning parameter: both of AdamW's, or Muon's one."""
        for name, parameter in self._named.items():
            if parameter.requires_grad:
                group, *_ = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
                yield from (self._piece(name, f"{name}.{key}", key) for key in self._keys[group])

    def working(self) -> Iterator[Piece]:
        """Yields nothing: `refresh` reaches the parameters the model computes with."""
        yield from ()

    def refresh(self) -> None:
        """Carries freshly loaded weights over to the ones the model computes with. Collective: every rank must call."""
        for parameter in self._named.values():
            if parameter.requires_grad:
                local = self._optimizer.get_local_fp32_param(parameter)
                parameter.ds_tensor.data.copy_(local)  # type: ignore[attr-defined]  # DeepSpeed hangs it on the parameter
        if persistent := self._optimizer.persistent_parameters:  # the gathered ones still show the old values
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)
        self._optimizer.invalidate_secondary_tensor()  # what ZeRO++ keeps within a node is old as well

    def _piece(self, name: str, label: str, key: str | None) -> Piece:
        parameter = self._named[name]
        place = elastic.held(label, parameter)
        # not DeepSpeed's own get_local_fp32_param: it copies to the GPU what is off-loaded, and we need what lives
        group, start, numel = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
        flat: Tensor = self._optimizer.fp32_partitioned_groups_flat[group]
        held: Tensor = flat if key is None else self._optimizer.optimizer.state[flat][key]
        return Piece(label, place.shape, place.start, held.detach().narrow(0, start, numel)[: place.local.numel()])


def _begin(
    optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], step: int, keys: Sequence[str] = _MOMENTS
) -> None:
    for parameter in parameters:
        state = optimizer.state[parameter]
        if not state:
            state.update({key: torch.zeros_like(parameter) for key in keys})
            if keys == _MOMENTS:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        if "step" in state:
            state["step"].fill_(step)
