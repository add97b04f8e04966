"""One model over a tensor-parallel group, as an engine sees it. Imports megatron-core: only for who asks for it."""

from collections.abc import Mapping

from torch import Tensor, nn

from orchestrator.training.config import EngineConfig
from orchestrator.training.holdings import Holdings
from orchestrator.training.parallel.cut_holdings import CutHoldings
from orchestrator.training.parallel.cutting import Cut, Gathered, How, as_it_is, cut_model
from orchestrator.training.parallel.grid import Grid, Mpu
from orchestrator.world import World


class TensorParallel:
    """Cuts a model, and knows afterwards which of its parameters are shares."""

    def __init__(self, engine: EngineConfig, world: World) -> None:
        """Forms the groups that an engine's config asks for. Collective: every rank must call."""
        self.grid = Grid(engine.tensor_parallel, world)
        self._cut_tokens = engine.sequence_parallel
        self.mpu = Mpu(self.grid)
        self._cuts: dict[str, Cut] = {}

    def cut(self, model: nn.Module, *, gather_logits: bool, gathered: Gathered = as_it_is) -> None:
        """Cuts the language models of a model that has its weights, before anything is frozen.

        Collective: every rank must call.
        """
        how = How(gather_logits=gather_logits, cut_tokens=self._cut_tokens, gathered=gathered)
        self._cuts = cut_model(model, self.grid, how)

    def holdings(self, of_share: Holdings) -> Holdings:
        """Places what an engine holds of this rank's share in the whole."""
        return CutHoldings(of_share, self._cuts, self.grid)

    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Returns the norm of all gradients, those of whole parameters counted once.

        Collective: every rank must call.
        """
        return self.grid.norm(gradients, self._cuts)
