"""How ranks stand together: those that share matrices, and those that hold the same share of them."""

import logging
from collections.abc import Mapping

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.training.parallel.plans import KEY
from orchestrator.world import World

log = logging.getLogger(__name__)


class Grid:
    """This rank's place: `share` of `degree` within its tensor-parallel group, `reader` of `readers` among its peers.

    The ranks of a tensor-parallel group are neighbours, so that on a cluster they sit on one node.
    """

    def __init__(self, degree: int, world: World) -> None:
        """Forms the groups, or finds them formed. Collective: every rank must call."""
        if not world.joined:
            raise InputError(f"{KEY}: {degree} ranks need a process group; allowed for a process alone: 1")
        if parallel_state.model_parallel_is_initialized():
            if parallel_state.get_tensor_model_parallel_world_size() == degree:
                self._look(degree, world)
                return
            parallel_state.destroy_model_parallel()
        # for megatron's own optimizer it would make every group twice
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=degree, create_gloo_process_groups=False)
        self._look(degree, world)
        log.info("tensor parallel: %d groups of %d ranks", self.readers, degree)

    def _look(self, degree: int, world: World) -> None:
        self.degree, self.readers = degree, world.size // degree
        self.share: int = parallel_state.get_tensor_model_parallel_rank()
        self.reader: int = parallel_state.get_data_parallel_rank()
        self.tensor_group: dist.ProcessGroup = parallel_state.get_tensor_model_parallel_group()
        self.data_group: dist.ProcessGroup = parallel_state.get_data_parallel_group()

    def norm(self, gradients: Mapping[str, Tensor], cut: Mapping[str, object]) -> Tensor:
        """Returns the norm of all gradients: shares from every rank of the group, whole ones once.

        Collective: every rank must call.
        """
        squares = {name: torch.linalg.vector_norm(gradient).square() for name, gradient in gradients.items()}
        zero = torch.zeros((), device=next(iter(gradients.values())).device)
        shares = torch.stack([zero, *(square for name, square in squares.items() if name in cut)]).sum()
        whole = torch.stack([zero, *(square for name, square in squares.items() if name not in cut)]).sum()
        dist.all_reduce(shares, group=self.tensor_group)
        return (shares + whole).sqrt()


class Mpu:
    """What DeepSpeed asks about tensor parallelism; megatron-core's parallel_state knows it by other names.

    ZeRO partitions over the data-parallel group, and counts the gradients of whole parameters on the first share only.
    """

    def __init__(self, grid: Grid) -> None:
        """Answers for this rank's place."""
        self._grid = grid

    def get_model_parallel_rank(self) -> int:
        """Returns which share this rank holds."""
        return self._grid.share

    def get_model_parallel_world_size(self) -> int:
        """Returns how many shares there are."""
        return self._grid.degree

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """Returns the ranks with the other shares."""
        return self._grid.tensor_group

    def get_data_parallel_rank(self) -> int:
        """Returns which of the ranks with this share this one is."""
        return self._grid.reader

    def get_data_parallel_world_size(self) -> int:
        """Returns how many ranks have this share."""
        return self._grid.readers

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Returns the ranks with this share."""
        return self._grid.data_group
