"""Sequence parallelism: between the cut halves of a layer each rank of a group has its share of the tokens only.

Norms and the residual stream then hold 1/degree of the activations. What tensor parallelism sums up over the group is
summed up and handed out by tokens instead, and gathered before the next cut half: the same traffic. megatron-core's own
way has the tokens in the first dimension and asks for a CUDA device; this one has them in the second, as transformers
does, and runs on gloo too.

Legend: B samples, L tokens, S tokens of one share, D features.
"""

from collections.abc import Callable, Container
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.training.parallel.grid import Grid
from orchestrator.training.parallel.plans import Plan


class Tokens:
    """Cuts and joins the tokens of a language model. The last share is padded where the tokens do not divide."""

    def __init__(self, grid: Grid) -> None:
        """Has seen no tokens."""
        self.grid = grid
        self._length = 0  # of the sequences in hand
        self._cut = False  # between the first layer and the last norm

    def hook(self, model: nn.Module, plan: Plan, cut: Container[str]) -> None:
        """Lets the layers of a language model, whose parameters in `cut` are shares, hand on shares of the tokens."""
        model.get_submodule(plan.first).register_forward_pre_hook(self._enter, with_kwargs=True)
        model.get_submodule(plan.last).register_forward_hook(self._leave)
        for name, module in model.named_modules():
            if plan.is_half(name):
                module.register_forward_pre_hook(self._gather_for, with_kwargs=True)
        for name, parameter in model.named_parameters():
            if plan.sees_shares(name) and name not in cut:
                parameter.requires_grad_(True)  # what shall not learn is frozen later
                parameter.register_hook(self._add_up)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def sum_shares(self, partial_BLD: Tensor) -> Tensor:
        """Adds up what the ranks have of all tokens, and keeps this rank's share of them: B x S x D."""
        summed: Tensor = _Share.apply(self._padded(partial_BLD), self.grid, True)  # type: ignore[no-untyped-call]  # torch's
        return summed

    def _enter(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        def share(hidden_BLD: Tensor) -> Tensor:
            self._length, self._cut = hidden_BLD.shape[1], True
            shared: Tensor = _Share.apply(self._padded(hidden_BLD), self.grid, False)  # type: ignore[no-untyped-call]  # torch's
            return shared

        return _with_hidden(share, args, kwargs)

    def _gather_for(self, _half: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return _with_hidden(lambda hidden_BSD: self._joined(hidden_BSD, cut_after=True), args, kwargs)

    def _leave(self, _norm: nn.Module, _args: object, hidden: Tensor) -> Tensor:
        if not self._cut:  # somebody asks the norm alone
            return hidden
        self._cut = False
        return self._joined(hidden, cut_after=False)

    def _joined(self, hidden_BSD: Tensor, *, cut_after: bool) -> Tensor:
        whole: Tensor = _Join.apply(hidden_BSD, self.grid, cut_after)  # type: ignore[no-untyped-call]  # torch's
        return whole[:, : self._length]

    def _add_up(self, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.grid.tensor_group)
        return total

    def _padded(self, hidden_BLD: Tensor) -> Tensor:
        lacking = -hidden_BLD.shape[1] % self.grid.degree
        return nn.functional.pad(hidden_BLD, (0, 0, 0, lacking)) if lacking else hidden_BLD


def _with_hidden(
    change: Callable[[Tensor], Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Changes the hidden states among the arguments of a layer: the first one, or the one of that name."""
    if args:
        return (change(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}


def _gather(share: Tensor, grid: Grid) -> Tensor:
    parts = [torch.empty_like(share, memory_format=torch.contiguous_format) for _ in range(grid.degree)]
    dist.all_gather(parts, share.contiguous(), group=grid.tensor_group)
    return torch.cat(parts, dim=1)


def _scatter_sum(whole: Tensor, grid: Grid) -> Tensor:
    parts = [part.contiguous() for part in whole.chunk(grid.degree, dim=1)]
    share = torch.empty_like(parts[0])
    dist.reduce_scatter(share, parts, group=grid.tensor_group)
    return share


def _own(whole: Tensor, grid: Grid) -> Tensor:
    return whole.chunk(grid.degree, dim=1)[grid.share].contiguous()


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, grid: Grid, sums: bool) -> Tensor:  # noqa: FBT001 - torch's way
        ctx.grid = grid
        cut = _scatter_sum if sums else _own
        return cut(whole, grid)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _gather(gradients[0], ctx.grid), None, None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, grid: Grid, cut_after: bool) -> Tensor:  # noqa: FBT001 - torch's way
        ctx.grid, ctx.cut_after = grid, cut_after
        return _gather(share, grid)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        back = _scatter_sum if ctx.cut_after else _own
        return back(gradients[0], ctx.grid), None, None
