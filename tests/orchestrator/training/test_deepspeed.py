"""A module that ZeRO-3 is to gather as one, and cannot, is refused by its name."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")
import torch
from torch import Tensor, nn

from orchestrator.errors import InputError
from orchestrator.training.deepspeed import mark_leaves
from orchestrator.training.engine import make_engine
from orchestrator.world import World
from tests.ranks import run_ranks
from tests.toys import ToyTask, toy_engine, toy_train


class Tower(nn.Module):
    """Reads pixels, as an image encoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.layer = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, pixels_BD: Tensor) -> Tensor:
        seen: Tensor = self.layer(self.patches(pixels_BD))
        return seen


def marked(*patterns: str) -> nn.Sequential:
    model = nn.Sequential(Tower())
    mark_leaves(model, patterns)
    return model


def test_a_leaf_that_learns_from_data_alone_is_refused_with_its_name() -> None:
    model = marked("Tower")

    with pytest.raises(InputError, match=r"train\.engine\.leaf_modules: '0' \(Tower\) learns, but .* layers"):
        model(torch.ones(2, 4))


def test_a_leaf_whose_input_comes_by_name_is_refused_too() -> None:
    model = marked("Tower")

    with pytest.raises(InputError, match="by position"):
        model[0](pixels_BD=torch.ones(2, 4, requires_grad=True))


@pytest.mark.parametrize(
    "called",
    [
        lambda model: model(torch.ones(2, 4, requires_grad=True)),
        lambda model: model.requires_grad_(requires_grad=False)(torch.ones(2, 4)),
        torch.no_grad()(lambda model: model(torch.ones(2, 4))),
    ],
    ids=["learns from what learns", "is frozen", "is asked"],
)
def test_a_leaf_whose_gradients_come_in_time_is_run(called: Callable[[nn.Module], Tensor]) -> None:
    assert called(marked("Tower")).shape == (2, 4)


def test_the_layers_inside_are_fine() -> None:
    assert marked("*.layer")(torch.ones(2, 4)).shape == (2, 4)


class Speaker(nn.Module):
    """Is asked by a method and never called, as a model with several ways in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def say(self, hidden_BD: Tensor) -> Tensor:
        said: Tensor = self.layer(hidden_BD)
        return said


class Asking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.speaker = nn.Linear(4, 4), Speaker()

    def forward(self, hidden_BD: Tensor) -> Tensor:
        said: Tensor = self.speaker.say(self.first(hidden_BD))
        return said


class AskingTask(ToyTask):
    def build_model(self) -> nn.Module:
        return Asking()


def _step(world: World, leaf: str) -> str:
    train = toy_train(1, engine=toy_engine("deepspeed", leaf_modules=(leaf,)))
    engine = make_engine(AskingTask(), train, trainable=("*",), world=world, seed=1)
    for _ in range(engine.accumulation):
        engine.backward(engine.module(torch.ones(2, 4)).sum())
    try:
        engine.step()
    except InputError as error:
        return str(error)
    return "learnt"


@pytest.mark.slow
def test_a_leaf_that_is_never_called_is_refused_before_it_goes_unlearnt(tmp_path: Path) -> None:
    said = [run_ranks(1, _step, leaf, directory=tmp_path) for leaf in ("Speaker", "speaker.layer")]

    assert "'speaker' (Speaker) learns, but is never called itself" in said[0][0]
    assert said[1] == ["learnt"]
