"""The micro-batches of a tensor-parallel group: one of its ranks reads them, and all compute on the same."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from orchestrator.data.stream import Drawn, Loss
from orchestrator.errors import OrchError
from orchestrator.training.loop import Batches

Batch = TypeVar("Batch")


class OneReader:
    """Hands what the first rank of each group draws to its other ranks.

    Were each to read for itself, one that lost a sample to a bad disk would compute on another batch than its group,
    and nobody would know. So too the samples are read and decoded once.
    """

    def __init__(self, stream: Batches, *, accumulation: int) -> None:
        """Takes the stream of this rank's group, which only its first rank asks."""
        self._stream, self._accumulation = stream, accumulation
        self._group: dist.ProcessGroup = parallel_state.get_tensor_model_parallel_group()
        self._source: int = parallel_state.get_tensor_model_parallel_src_rank()
        self._reads = dist.get_rank() == self._source

    def batches(self, collate: Callable[[Sequence[Drawn]], Batch], *, start_step: int, steps: int) -> Iterator[Batch]:
        """Yields this rank's micro-batches. Collective within the tensor-parallel group, at every one."""
        drawn = self._stream.batches(collate, start_step=start_step, steps=steps) if self._reads else iter(())
        for _ in range(steps * self._accumulation):
            box: list[tuple[Batch | None, OrchError | None]] = [(None, None)]
            if self._reads:
                try:
                    box = [(next(drawn), None)]
                except OrchError as error:  # on all ranks of the group, or they would wait for this one
                    box = [(None, error)]
            dist.broadcast_object_list(box, src=self._source, group=self._group, device=torch.device("cpu"))
            batch, problem = box[0]
            if problem is not None:
                raise problem
            assert batch is not None  # noqa: S101 - the reader sends one or the other
            yield batch

    def take_losses(self) -> Sequence[Loss]:
        """Returns what was lost from the micro-batches since it was last asked, once for the group."""
        return self._stream.take_losses() if self._reads else ()

    def drawn_before(self, step: int) -> int:
        """Counts the samples that all ranks together draw before a step."""
        return self._stream.drawn_before(step)

    def names_of(self, step: int) -> Sequence[str]:
        """Names this rank's samples of a step, counted from 1, once for the group."""
        return self._stream.names_of(step) if self._reads else ()
