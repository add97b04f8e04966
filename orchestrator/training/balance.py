"""Makes every rank run a part of the model equally often, whatever its batch gives it to do there.

ZeRO-3 gathers the weights of a module when it runs, and all ranks take part in that: a mask decoder that only one rank
has masks for would wait for the others until its time-out. A task names such parts (`TrainTask.uneven`) and says how
often a batch will run them (`TrainTask.runs`). The ranks agree on the highest number; who has less runs the part again,
on inputs of the shapes that it was seen with, and lets the outputs count nothing.
"""

import io
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from orchestrator.errors import AsymmetricRanks
from orchestrator.training.task import Uneven
from orchestrator.world import World

SMALL_BYTES = 1 << 16  # a tensor of indices or of a mask up to this size is copied as it is: its values mean something
PATIENCE_S = 60.0  # for another rank to show with what it runs a part that this rank has never run
_BETWEEN_LOOKS_S = 0.002
_PLAIN = (bool, int, float, str, type(None))


class Balance:
    """Counts the runs of the uneven parts of a model, and makes up for those that a rank lacks.

    A part must not keep statistics of what it sees (batch norm): what is made up would count in them.
    """

    def __init__(self, model: nn.Module, parts: Sequence[Uneven], world: World) -> None:
        """Hooks into the parts and into what runs after them. `model` is what the task built."""
        self._world = world
        self._parts = {part.module: model.get_submodule(part.module) for part in parts}
        self._needed: dict[str, int] = {}
        self._declared: Mapping[str, int] = {}
        self._ran: dict[str, int] = {}
        self._inputs: dict[str, bytes] = {}
        self._penalties: list[Tensor] = []
        self._counting = self._making_up = False
        self._step = 0
        if not parts or world.size == 1:
            self._parts = {}
            return
        for name, part in self._parts.items():
            part.register_forward_pre_hook(self._before(name), with_kwargs=True, prepend=True)
        for fence in {part.before for part in parts}:
            names = [part.module for part in parts if part.before == fence]
            if fence is None:  # before ZeRO-3 says goodbye to the model
                model.register_forward_hook(lambda *_, names=names: self._make_up(names), prepend=True)
            else:
                model.get_submodule(fence).register_forward_pre_hook(
                    lambda *_, names=names: self._make_up(names), prepend=True
                )

    def expect(self, runs: Mapping[str, int], step: int) -> None:
        """Agrees how often each part runs in the forward pass that follows. Collective: every rank must call."""
        if not self._parts:
            return
        if strange := runs.keys() - self._parts.keys():
            raise AsymmetricRanks(f"the task says how often {', '.join(sorted(strange))} runs, but not in `uneven`")
        own = {name: float(runs.get(name, 0)) for name in self._parts}
        self._needed = {name: int(most) for name, most in self._world.highest_of(own).items()}
        self._declared = runs
        self._ran = dict.fromkeys(self._parts, 0)
        self._penalties, self._counting, self._step = [], True, step

    def penalty(self) -> Tensor | None:
        """Returns zero with the graph of what was made up, to be added to the loss; None where nothing was."""
        if not self._parts:
            return None
        self._counting = False  # what runs again in the backward pass (activation checkpointing) is no run of its own
        wrong = [
            f"{name} ran {self._ran[name]} times, where the task's `runs` had said {self._declared.get(name, 0)}"
            for name in self._parts
            if self._ran[name] != self._declared.get(name, 0)
        ]
        if wrong:
            raise AsymmetricRanks(f"rank {self._world.rank}, step {self._step}: {'; '.join(wrong)}")
        return torch.stack(self._penalties).sum() if self._penalties else None

    def _before(self, name: str) -> Any:
        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self._counting or self._making_up:
                return
            self._ran[name] += 1
            if name not in self._inputs:
                self._inputs[name] = _described(name, args, kwargs)
                _store().set(_key(name), self._inputs[name])

        return note

    def _make_up(self, names: Sequence[str]) -> None:
        if not self._counting or self._making_up:
            return
        self._making_up = True
        try:
            lacking = {name: self._needed[name] - self._declared.get(name, 0) for name in names}
            for turn in range(max(lacking.values())):  # in turn: parts that run in a loop follow each other
                for name in (name for name, most in lacking.items() if turn < most):
                    args, kwargs = self._stand_in(name)
                    self._penalties += _weightless(self._parts[name](*args, **kwargs))
        finally:
            self._making_up = False

    def _stand_in(self, name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if name not in self._inputs:
            self._inputs[name] = self._shown_by_another(name)
        device = next(self._parts[name].parameters()).device
        return _remade(self._inputs[name], device)

    def _shown_by_another(self, name: str) -> bytes:
        store, deadline = _store(), time.monotonic() + PATIENCE_S
        while not store.check([_key(name)]):
            if time.monotonic() > deadline:
                waited = f"waited {PATIENCE_S:.0f} s for a rank that shows with what inputs"
                raise AsymmetricRanks(f"{name} is to run at step {self._step}, but it was never seen to: {waited}")
            time.sleep(_BETWEEN_LOOKS_S)
        return bytes(store.get(_key(name)))


def _store() -> Any:
    return torch.distributed.distributed_c10d._get_default_store()  # noqa: SLF001 - torch has no public name for it


def _key(name: str) -> str:
    return f"orch/balance/{name}"


def _described(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Writes down the inputs of a run: shapes of tensors, values of small ones that hold no real numbers."""
    leaves, tree = pytree.tree_flatten((args, kwargs))
    strange = {type(leaf).__name__ for leaf in leaves if not isinstance(leaf, (Tensor, *_PLAIN))}
    if strange:
        raise AsymmetricRanks(f"{name} is uneven, but takes {', '.join(sorted(strange))}; allowed: tensors and numbers")
    learns = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]
    outlines = [_outline(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    file = io.BytesIO()
    torch.save({"inputs": pytree.tree_unflatten(outlines, tree), "learns": learns}, file)
    return file.getvalue()


def _outline(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() and tensor.nbytes <= SMALL_BYTES:
        return tensor.detach().cpu().clone()
    return torch.zeros(1, dtype=tensor.dtype).expand(tensor.shape)  # one element is stored


def _remade(content: bytes, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    described = torch.load(io.BytesIO(content), weights_only=True)
    leaves, tree = pytree.tree_flatten(described["inputs"])
    chance = torch.Generator().manual_seed(0)  # its own: the step's random numbers are not for this
    made = [
        _filled(leaf, chance).to(device).requires_grad_(learns) if isinstance(leaf, Tensor) else leaf
        for leaf, learns in zip(leaves, described["learns"], strict=True)
    ]
    args, kwargs = pytree.tree_unflatten(made, tree)
    return tuple(args), kwargs


def _filled(outline: Tensor, chance: torch.Generator) -> Tensor:
    if outline.is_floating_point():  # no zeros: the gradient of a norm is not a number there
        return torch.randn(outline.shape, generator=chance).to(outline.dtype)
    return outline.contiguous()


def _weightless(output: Any) -> list[Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    return [torch.nan_to_num(leaf.float()).sum() * 0 for leaf in leaves]
