"""Follows the bytes alive while torch computes without data: every storage from its birth to its end.

The model lies on the meta device, where tensors have sizes and no content; what a batch says (ids, masks, places) lies
on the CPU with true values, so that shapes that depend on them come out right. What an operation makes of both is meta.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop


def _operation(name: str) -> Any:
    """Returns one of torch's operations; the names of many begin with an underscore."""
    return getattr(torch.ops.aten, name)


_INDEXING = frozenset(map(_operation, ("index", "index_put", "index_put_", "_index_put_impl_")))
_COPY = _operation("_to_copy")
_EFFICIENT = _operation("_scaled_dot_product_efficient_attention")
_FLASH = _operation("_scaled_dot_product_flash_attention_for_cpu")
_FLASH_BACK = _operation("_scaled_dot_product_flash_attention_for_cpu_backward")
FORMULAS: Mapping[Any, Callable[..., int]] = {**flop_registry, _FLASH: sdpa_flop, _FLASH_BACK: sdpa_backward_flop}


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Adds up what is alive, and the floating point operations, from one operation to the next."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """Leaves out the storages of `known` tensors: parameters and buffers."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.moments: list[tuple[int, int]] = []  # bytes alive, and bytes of gradients that were let go, after each
        self.at_peak: Mapping[str, int] = {}  # part -> bytes alive at the highest moment so far
        self.flops = 0
        self.part = "other"
        self._live, self._highest, self._gradients = 0, 0, 0
        self._by_part: Counter[str] = Counter()
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        for tensor in known:
            self._seen.add(tensor.untyped_storage())

    def take(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that were made before."""
        for tensor in tensors:
            self._count(tensor)

    def let_go(self, parameter: nn.Parameter) -> None:
        """Takes a gradient away as soon as it is there, and remembers its size."""
        if parameter.grad is not None:
            self._gradients += parameter.grad.nbytes
            parameter.grad = None
            self.moments.append((self._live, self._gradients))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one operation, and counts what it made."""
        del types
        named = kwargs or {}
        operation = func.overloadpacket
        if operation is _COPY and named.get("device") == torch.device("meta") and not args[0].is_meta:
            return args[0].detach()  # what a batch says stays readable; on a GPU it would be there once as well
        if operation is _COPY and named.get("device") == torch.device("cpu") and args[0].is_meta:
            return args[0].detach()  # nothing that a GPU would hold
        args, named = _together(operation, args, named)
        made = func(*args, **named)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        if operation in FORMULAS:
            self.flops += FORMULAS[operation](*args, **named, out_val=made)
        self.moments.append((self._live, self._gradients))
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        size, part = storage.nbytes(), self.part
        self._live += size
        self._by_part[part] += size
        weakref.finalize(storage, self._forget, size, part)
        if self._live > self._highest:
            self._highest, self.at_peak = self._live, dict(self._by_part)

    def _forget(self, size: int, part: str) -> None:
        self._live -= size
        self._by_part[part] -= size


def _together(operation: Any, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Brings the tensors of an operation to the meta device, if any of them is there; places instead of masks."""
    tensors = [leaf for leaf in tree_leaves((args, named)) if isinstance(leaf, Tensor)]
    if not any(tensor.is_meta for tensor in tensors):
        return args, named
    if operation in _INDEXING:
        args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
    # numbers stay: where one is on the CPU, the kind of number of the result does not follow from it
    moved: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(
        Tensor, lambda tensor: tensor if tensor.is_meta or tensor.dim() == 0 else tensor.to("meta"), (args, named)
    )
    return moved


def _places(index: Tensor | None) -> tuple[Tensor | None, ...]:
    if index is None or index.is_meta or index.dtype not in {torch.bool, torch.uint8}:
        return (index,)
    return index.nonzero(as_tuple=True)


@contextmanager
def fused_attention(*, on_gpu: bool) -> Iterator[None]:
    """Attends by the fused kernel that a real device would take: on the meta device torch falls back to whole tables.

    All of them keep queries, keys, values, output and one number a query. For a bias that learns the CPU has none.
    Torch's function itself is exchanged: a mode would not reach what is computed again on the way back.
    """
    original = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = partial(_attend, original, on_gpu=on_gpu)
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def _attend(  # noqa: PLR0913, PLR0917 - torch's signature
    whole: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,  # noqa: FBT001, FBT002 - the same
    enable_gqa: bool = False, *, on_gpu: bool,  # noqa: FBT001, FBT002 - the same
) -> Tensor:  # fmt: skip
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = (shared.repeat_interleave(groups, 1) for shared in (key, value))
    learns = attn_mask is not None and attn_mask.requires_grad
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # each call makes a table of numbers of it
        numbers = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = numbers.masked_fill_(attn_mask.logical_not(), float("-inf"))
    out: Tensor
    if not learns and not dropout_p:
        out, _ = _FLASH(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
    elif on_gpu:
        bias = None if attn_mask is None else attn_mask.expand(*query.shape[:3], key.shape[2])
        out, *_ = _EFFICIENT(query, key, value, bias, True, dropout_p, is_causal, scale=scale)
    else:
        out = whole(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale)
    return out
