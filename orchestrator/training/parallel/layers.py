"""megatron-core's parallel layers in the shape of the layers that they stand in for: a tensor in, a tensor out.

They hold nothing yet when they are made: `cutting.py` carries the weights over. Their weights are made on the CPU
(`use_cpu_initialization`): megatron's other way asks for a CUDA device and its own random numbers.

Legend: B samples, L tokens, D features, V words of the vocabulary.
"""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from torch import Tensor, nn

from orchestrator.training.parallel.grid import Grid
from orchestrator.training.parallel.sequence import Tokens

# the logit of a word that is only padding: no softmax sees it, and bf16, fp16 and sums can hold it
NO_WORD = -30_000.0

warnings.filterwarnings(  # advice for GPUs, given once a process; parallel/README.md gives it too
    "ignore", message="When using async grad allreduce", module="megatron.core.tensor_parallel.layers"
)


class Columns(ColumnParallelLinear):  # type: ignore[misc]  # megatron-core ships no types
    """A linear layer that computes this rank's share of the outputs; the last share may be padded."""

    def __init__(self, like: nn.Linear, grid: Grid, *, padded: int, sums_gradient: bool = True) -> None:
        """Makes the share of a layer, of whose outputs there are `padded` with padding.

        `sums_gradient`: that of the features is added up over the group, here and now.
        """
        super().__init__(
            like.in_features,
            padded,
            config=_config(like.weight.dtype, grid),
            init_method=_nothing,
            bias=like.bias is not None,
            skip_bias_add=True,  # megatron forgets the gradient of a bias whose weight is frozen
            disable_grad_reduce=not sums_gradient,
            tp_group=grid.tensor_group,
        )
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Takes whole features, gives a share of the outputs. Collective within the tensor-parallel group."""
        out: Tensor
        out, bias = super().forward(features)
        return out if bias is None else out + bias


class Rows(RowParallelLinear):  # type: ignore[misc]  # megatron-core ships no types
    """A linear layer whose inputs arrive as shares, and whose outputs are added up over the ranks."""

    def __init__(self, like: nn.Linear, grid: Grid, tokens: Tokens | None = None) -> None:
        """Makes the share of a layer, whose sums are handed out by tokens if there are `tokens`."""
        super().__init__(
            like.in_features,
            like.out_features,
            config=_config(like.weight.dtype, grid),
            init_method=_nothing,
            bias=like.bias is not None,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=grid.tensor_group,
        )
        set_tensor_model_parallel_attributes(self.weight, True, 1, 1)
        self._tokens = tokens

    def forward(self, features: Tensor) -> Tensor:
        """Takes a share of the features, gives whole outputs. Collective within the tensor-parallel group."""
        if self._tokens is None:
            out: Tensor = super().forward(features)[0]
            return out
        partial: Tensor = self._forward_impl(
            input=features,
            weight=self.weight,
            bias=None,
            gradient_accumulation_fusion=False,
            allreduce_dgrad=False,
            sequence_parallel=False,
            tp_group=self.tp_group,
            grad_output_buffer=None,
        )
        out = self._tokens.sum_shares(partial)
        return out if self.bias is None else out + self.bias


class Words(VocabParallelEmbedding):  # type: ignore[misc]  # megatron-core ships no types
    """An embedding that holds this rank's share of the words; the last share may be padded."""

    def __init__(self, like: nn.Embedding, grid: Grid, *, padded: int) -> None:
        """Makes the share of an embedding, of whose words there are `padded` with padding."""
        config = _config(like.weight.dtype, grid)
        super().__init__(padded, like.embedding_dim, init_method=_nothing, config=config, tp_group=grid.tensor_group)
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)
        self.padding_idx = like.padding_idx

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Takes all ids, gives whole embeddings B x L x D. Collective within the tensor-parallel group."""
        found_BLD: Tensor = super().forward(ids_BL)
        if self.padding_idx is None:
            return found_BLD
        # as torch's own embedding: what stands for no word learns nothing
        return torch.where((ids_BL == self.padding_idx)[..., None], found_BLD.detach(), found_BLD)


class WholeWords(torch.autograd.Function):
    """Puts the logits of all shares side by side. megatron-core's own way asks for a CUDA device."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, grid: Grid) -> Tensor:
        """Gathers along the last dimension."""
        ctx.grid = grid
        parts = [torch.empty_like(logits, memory_format=torch.contiguous_format) for _ in range(grid.degree)]
        dist.all_gather(parts, logits.contiguous(), group=grid.tensor_group)
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Keeps this rank's share: every rank computes the whole loss, so it has all of the gradient."""
        return gradients[0].chunk(ctx.grid.degree, dim=-1)[ctx.grid.share].contiguous(), None


class Logits:
    """What becomes of the head's share of the logits: padding is told apart, and the rest gathered where asked."""

    def __init__(self, vocabulary: int, grid: Grid, *, gather: bool) -> None:
        """Knows the words."""
        self._vocabulary, self._grid, self._gather = vocabulary, grid, gather

    def __call__(self, _head: nn.Module, _inputs: object, logits: Tensor) -> Tensor:
        """Is the forward hook of the head."""
        if self._gather:
            whole: Tensor = WholeWords.apply(logits, self._grid)  # type: ignore[no-untyped-call]  # torch's
            return whole[..., : self._vocabulary]
        width = logits.shape[-1]
        words = torch.arange(width, device=logits.device) + width * self._grid.share
        if width * (self._grid.share + 1) <= self._vocabulary:
            return logits
        return logits.masked_fill(words >= self._vocabulary, NO_WORD)


def _config(dtype: torch.dtype, grid: Grid) -> ModelParallelConfig:
    return ModelParallelConfig(
        tensor_model_parallel_size=grid.degree,
        use_cpu_initialization=True,
        perform_initialization=False,
        params_dtype=dtype,
    )


def _nothing(_: Tensor) -> None:
    """Leaves a weight as it is."""
