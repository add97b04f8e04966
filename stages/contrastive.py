"""Contrast of what belongs together, over the batches of all ranks: InfoNCE in blocks, and encoders run in parts.

A step's batch is contrasted whole: every pair of a rank stands against the pairs of all ranks. Memory stays flat in two
ways. `in_parts` lets an encoder see a part of the batch at a time and computes each part again on the way back
(GradCache), so that only the embeddings of the whole batch are kept. `contrast` computes its table of similarities in
blocks of rows and keeps none of them. Gradients are those of one process with the whole batch: no rank sends any,
because a rank that knows every embedding and every row's sum knows what its own pairs cost the others.

Legend: N pairs of this rank, G pairs of all ranks together, D dimensions of an embedding, K rows of a block.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from orchestrator.records import record

Part = TypeVar("Part")
Encoded = TypeVar("Encoded")

BLOCK = 2048  # rows of the table that are there at once: 1 GiB in fp32 where all ranks have 131,072 pairs


def contrast(
    images_ND: Tensor,
    texts_ND: Tensor,
    scale: Tensor,
    *,
    conflict: float | None = None,
    alike_ND: Tensor | None = None,
    block: int = BLOCK,
) -> Tensor:
    """Computes the symmetric InfoNCE of all ranks' pairs: the mean over pairs and both directions, equal on all ranks.

    Row n of `images_ND` and of `texts_ND` belong together; both have unit length. Ranks may bring different numbers of
    pairs, and none. `scale` multiplies similarities (one over the temperature). `conflict`: two pairs whose texts have
    a higher cosine are no negatives of each other and leave each other's denominators; no gradient goes through that
    test. It compares `alike_ND` (any width, any length), or else the texts themselves.

    The gradient that a rank gets is so large that the mean over ranks, which every engine takes, is the true one.
    Collective: every rank must call, with the same settings.
    """
    if images_ND.shape != texts_ND.shape:
        raise ValueError(f"{tuple(images_ND.shape)} images and {tuple(texts_ND.shape)} texts are no pairs")
    alike_ND = texts_ND if alike_ND is None else alike_ND
    alike_ND = functional.normalize(alike_ND.detach().float(), dim=-1)
    settings = _Settings(conflict=conflict, block=block)
    kind = torch.promote_types(images_ND.dtype, torch.float32)
    loss = _Contrast.apply(images_ND.to(kind), texts_ND.to(kind), scale.to(kind), alike_ND, settings)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return cast("Tensor", loss)


def in_parts(encode: Callable[[Part], Encoded], parts: Sequence[Part]) -> list[Encoded]:
    """Encodes the parts of a batch one after the other; on the way back each is computed anew, alone in memory.

    The gradients are those of encoding everything at once. `encode` returns a tensor or a tuple of tensors; random
    numbers that it draws are drawn again. A single part is encoded as it is.
    """
    if len(parts) < 2 or not torch.is_grad_enabled():
        return [encode(part) for part in parts]
    return [cast("Encoded", checkpoint(encode, part, use_reentrant=False)) for part in parts]


def over_ranks(amounts: Tensor) -> Tensor:
    """Adds up amounts over all ranks, without a gradient. Collective: every rank must call."""
    total = amounts.detach().clone()
    if ranks() > 1:
        dist.all_reduce(total)
    return total


def ranks() -> int:
    """Counts the processes that contrast together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@record
class _Settings:
    conflict: float | None
    block: int


class _Contrast(torch.autograd.Function):
    """The loss, and the gradient of a rank's own rows from the sums of everybody's rows."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, images_ND: Tensor, texts_ND: Tensor, scale: Tensor, alike_ND: Tensor, settings: _Settings
    ) -> Tensor:
        """Sums the rows of both tables, this rank's own, and gathers everybody's sums. Collective."""
        counts = _counts(len(images_ND), images_ND.device)
        first = sum(counts[: dist.get_rank()]) if ranks() > 1 else 0
        sides = [_gathered(one, counts) for one in (images_ND, texts_ND)]
        alike_GD = _gathered(alike_ND, counts) if settings.conflict is not None else alike_ND
        tables = [
            _Table(images_ND, sides[1], alike_ND, alike_GD, first, settings),
            _Table(texts_ND, sides[0], alike_ND, alike_GD, first, settings),
        ]
        sums_N2 = torch.stack([table.row_sums(scale) for table in tables], dim=1)
        sums_G2 = _gathered(sums_N2, counts)
        true_G = (sides[0] * sides[1]).sum(-1) * scale
        pairs = max(1, sum(counts))
        context = cast("Any", ctx)
        context.tables, context.scale, context.sums_G2 = tables, scale, sums_G2
        context.factor = ranks() / (2 * pairs)
        return (sums_G2.sum() - 2 * true_G.sum()) / (2 * pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Computes the gradients of this rank's rows, and its share of the scale's."""
        context = cast("Any", ctx)
        images, texts = context.tables
        factor = upstream * context.factor
        images_ND, of_scale = images.gradient(context.scale, context.sums_G2, own=0, other=1)
        of_texts_ND = None
        if context.needs_input_grad[1]:  # frozen texts cost no second table
            of_texts_ND = factor * texts.gradient(context.scale, context.sums_G2, own=1, other=0)[0]
        return factor * images_ND, of_texts_ND, factor * of_scale, None, None


class _Table:
    """The similarities of this rank's rows to everybody's columns, a block of rows at a time."""

    def __init__(
        self, rows_ND: Tensor, columns_GD: Tensor, alike_ND: Tensor, alike_GD: Tensor, first: int, settings: _Settings
    ) -> None:
        """Takes what rows and columns are told alike by; the pair of row n is column `first` + n."""
        self._rows_ND, self._columns_GD, self._first, self._settings = rows_ND, columns_GD, first, settings
        self._alike_ND, self._alike_GD = alike_ND, alike_GD

    def row_sums(self, scale: Tensor) -> Tensor:
        """Returns the logarithm of each row's sum of exponentials: N."""
        sums = [self._logits(cosines_KG, rows, scale).logsumexp(1) for rows, cosines_KG in self._blocks()]
        return torch.cat(sums) if sums else self._rows_ND.new_zeros(0)

    def gradient(self, scale: Tensor, sums_G2: Tensor, *, own: int, other: int) -> tuple[Tensor, Tensor]:
        """Returns the gradient of the summed losses of all rows and columns for these rows, and for the scale.

        A similarity counts in its row's sum and, on whichever rank, in its column's.
        """
        gradient_ND, of_scale = torch.zeros_like(self._rows_ND), torch.zeros_like(scale)
        for rows, cosines_KG in self._blocks():
            logits_KG = self._logits(cosines_KG, rows, scale)
            own_K = sums_G2[self._first + rows.start : self._first + rows.stop, own]
            shares_KG = (logits_KG - own_K[:, None]).exp_() + (logits_KG - sums_G2[:, other]).exp_()
            shares_KG.diagonal(self._first + rows.start).sub_(2)
            gradient_ND[rows] = scale * (shares_KG @ self._columns_GD)
            of_scale = of_scale + (shares_KG * cosines_KG).sum()
        return gradient_ND, of_scale

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(self._rows_ND), self._settings.block):
            rows = slice(start, min(start + self._settings.block, len(self._rows_ND)))
            yield rows, self._rows_ND[rows] @ self._columns_GD.T

    def _logits(self, cosines_KG: Tensor, rows: slice, scale: Tensor) -> Tensor:
        logits_KG = cosines_KG * scale
        if self._settings.conflict is None:
            return logits_KG
        conflicts_KG = self._alike_ND[rows] @ self._alike_GD.T > self._settings.conflict
        conflicts_KG.diagonal(self._first + rows.start).fill_(False)
        return logits_KG.masked_fill_(conflicts_KG, float("-inf"))


def _counts(own: int, device: torch.device) -> list[int]:
    if ranks() == 1:
        return [own]
    counts = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(ranks())]
    dist.all_gather(counts, torch.tensor([own], device=device))
    return [int(count) for count in counts]


def _gathered(own_ND: Tensor, counts: Sequence[int]) -> Tensor:
    """Joins every rank's rows, in rank order. Collective: every rank must call."""
    if len(counts) == 1:
        return own_ND
    padded_ND = own_ND.new_zeros(max(counts), *own_ND.shape[1:])  # ranks send equally much
    padded_ND[: len(own_ND)] = own_ND
    parts = [torch.empty_like(padded_ND) for _ in counts]
    dist.all_gather(parts, padded_ND)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
