"""What is saved beside weights and moments: a moving average of the weights, the loss scale of fp16."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import torch
from torch import nn

from orchestrator.training import elastic
from orchestrator.training.config import AverageConfig
from orchestrator.training.elastic import Piece
from orchestrator.training.holdings import Holdings


class Around:
    """Other holdings, with something beside them."""

    def __init__(self, inner: Holdings) -> None:
        """Stands before `inner`."""
        self._inner = inner

    def begin(self, step: int) -> None:
        """Creates the optimizer state where there was no step yet, and sets its step."""
        self._inner.begin(step)

    def weights(self) -> Iterator[Piece]:
        """Yields every parameter: in fp32 where it learns, as it is where it is frozen."""
        return self._inner.weights()

    def moments(self) -> Iterator[Piece]:
        """Yields the moments of every learning parameter, and what else an optimizer must know to go on."""
        return self._inner.moments()

    def working(self) -> Iterator[Piece]:
        """Yields the parameters the model computes with, where `weights` are others and `refresh` cannot reach them."""
        return self._inner.working()

    def refresh(self) -> None:
        """Carries freshly loaded weights over to the ones the model computes with. Collective: every rank must call."""
        self._inner.refresh()


class Averaging(Around):
    """A moving average of the learning weights: each rank averages what it holds of them."""

    def __init__(self, inner: Holdings, module: nn.Module, decay: float) -> None:
        """Begins with the weights as they are."""
        super().__init__(inner)
        learning = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        live = [piece for piece in inner.weights() if piece.name in learning]
        self._averages = {
            piece.name: replace(piece, name=f"{piece.name}.average", local=piece.local.clone()) for piece in live
        }
        self._live = [piece.local for piece in live if piece.local.numel()]
        self._decay = decay

    def update(self) -> None:
        """Moves the average towards the weights, after a step."""
        averages = [piece.local for piece in self._averages.values() if piece.local.numel()]
        if averages:
            torch._foreach_lerp_(averages, self._live, 1.0 - self._decay)

    def moments(self) -> Iterator[Piece]:
        """Yields the moments and the average of every learning parameter."""
        yield from self._inner.moments()
        yield from self._averages.values()

    def averaged(self) -> Iterator[Piece]:
        """Yields every parameter: its average where it learns, as it is where it is frozen."""
        for piece in self._inner.weights():
            average = self._averages.get(piece.name)
            yield piece if average is None else replace(average, name=piece.name)


class Averaged(Around):
    """Holdings with the average in the place of the weights: what is written for those who want it."""

    def __init__(self, average: Averaging) -> None:
        """Looks at an average."""
        super().__init__(average)
        self._average = average

    def weights(self) -> Iterator[Piece]:
        """Yields every parameter: its average where it learns, as it is where it is frozen."""
        return self._average.averaged()


class Scaler(Protocol):
    """What DeepSpeed multiplies fp16 losses by: it grows with quiet steps and halves with overflows."""

    cur_scale: float
    cur_iter: int
    last_overflow_iter: int
    cur_hysteresis: int


class Scaling(Around):
    """The loss scale of fp16 training, saved with the moments: the same on every rank, whatever their number."""

    def __init__(self, inner: Holdings, scaler: Scaler) -> None:
        """Looks at the scaler of an engine."""
        super().__init__(inner)
        self._scaler, self._read = scaler, torch.empty(0)

    def moments(self) -> Iterator[Piece]:
        """Yields the moments of every learning parameter, and the state of the loss scale."""
        yield from self._inner.moments()
        scaler = self._scaler
        state = [scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter, scaler.cur_hysteresis]
        self._read = torch.tensor(state, dtype=torch.float64)
        yield elastic.whole("loss_scale", self._read)

    def refresh(self) -> None:
        """Carries weights and loss scale that were just read over to the engine. Collective: every rank must call."""
        self._inner.refresh()
        scale, *counts = self._read.tolist()
        scaler = self._scaler
        scaler.cur_scale = scale
        scaler.cur_iter, scaler.last_overflow_iter, scaler.cur_hysteresis = (int(count) for count in counts)


def averaging(inner: Holdings, module: nn.Module, config: AverageConfig | None) -> tuple[Holdings, Averaging | None]:
    """Puts the moving average that a recipe asks for beside holdings."""
    if config is None:
        return inner, None
    average = Averaging(inner, module, config.decay)
    return average, average


def itself(holdings: Holdings) -> Holdings:
    """Leaves holdings as they are: what a rank has is part of the whole model already."""
    return holdings
