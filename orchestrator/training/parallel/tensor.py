"""One model over a tensor-parallel group, as an engine sees it. Imports megatron-core: only for who asks for it."""

from collections.abc import Mapping

from torch import Tensor, nn

from orchestrator.training.holdings import Holdings
from orchestrator.training.parallel.cut_holdings import CutHoldings
from orchestrator.training.parallel.cutting import Cut, Gathered, cut_model
from orchestrator.training.parallel.grid import Grid, Mpu
from orchestrator.world import World


class TensorParallel:
    """Cuts a model, and knows afterwards which of its parameters are shares."""

    def __init__(self, degree: int, world: World) -> None:
        """Forms groups of `degree` ranks. Collective: every rank must call."""
        self.grid = Grid(degree, world)
        self.mpu = Mpu(self.grid)
        self._cuts: dict[str, Cut] = {}

    def cut(self, model: nn.Module, *, gather_logits: bool, gathered: Gathered | None = None) -> None:
        """Cuts the language models of a model that has its weights. Collective: every rank must call."""
        self._cuts = cut_model(model, self.grid, gather_logits=gather_logits, gathered=gathered)

    def holdings(self, of_share: Holdings) -> Holdings:
        """Places what an engine holds of this rank's share in the whole."""
        return CutHoldings(of_share, self._cuts, self.grid)

    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Returns the norm of all gradients, those of whole parameters counted once.

        Collective: every rank must call.
        """
        return self.grid.norm(gradients, self._cuts)
