"""What a rank holds of a model that is cut: the pieces of its share, told where they lie in the whole."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from orchestrator.training.elastic import Piece
from orchestrator.training.holdings import Holdings
from orchestrator.training.parallel.cutting import Cut
from orchestrator.training.parallel.grid import Grid


class CutHoldings:
    """Holdings of any engine, as parts of whole parameters: so a checkpoint loads at any tensor-parallel degree."""

    def __init__(self, of_share: Holdings, cuts: Mapping[str, Cut], grid: Grid) -> None:
        """Looks at what an engine holds of this rank's share; `cuts` are by the names of the parameters."""
        self._of_share, self._cuts, self._grid = of_share, cuts, grid

    def begin(self, step: int) -> None:
        """Creates the optimizer state where there was no step yet, and sets its step."""
        self._of_share.begin(step)

    def weights(self) -> Iterator[Piece]:
        """Yields every parameter: in fp32 where it learns, as it is where it is frozen."""
        yield from map(self._placed, self._of_share.weights())

    def moments(self) -> Iterator[Piece]:
        """Yields both moments of every learning parameter."""
        yield from map(self._placed, self._of_share.moments())

    def working(self) -> Iterator[Piece]:
        """Yields the parameters the model computes with, where `weights` are others and `refresh` cannot reach them."""
        yield from map(self._placed, self._of_share.working())

    def refresh(self) -> None:
        """Carries freshly loaded weights over to the ones the model computes with. Collective: every rank must call."""
        self._of_share.refresh()

    def _placed(self, piece: Piece) -> Piece:
        owner = piece.name.rpartition(".")[0]  # of a moment: its name is the parameter's with one word more
        cut = self._cuts.get(piece.name) or self._cuts.get(owner)
        if cut is not None:
            return cut.place(piece, self._grid)
        if piece.replicated:
            return piece
        return replace(piece, copy=self._grid.share, copies=self._grid.degree)  # each share has the same partition
