"""Saved on N ranks, resumed on M: the loss curve is that of a run which was never interrupted."""

from collections.abc import Sequence
from pathlib import Path
from shutil import copytree

import pytest

from orchestrator.world import World
from tests.ranks import run_ranks
from tests.toys import ToyTask, curve, toy_engine, toy_fit, toy_train

pytestmark = pytest.mark.slow

STEPS, PAUSE = 6, 3
LEARNS = ("blocks", "head")  # the rest is frozen; there is a buffer too
ENGINES = {"zero0": toy_engine(), **{f"zero{n}": toy_engine("deepspeed", zero_stage=n) for n in (1, 2, 3)}}
SIZES = (1, 2, 3, 4)


def _whole_and_paused(world: World, directory: Path) -> None:
    for name in ENGINES:
        _fit(world, directory / name / "whole")
        _fit(world, directory / name / "paused", stop_after=PAUSE)


def _resumed(world: World, directory: Path, folder: str) -> None:
    for name in ENGINES:
        _fit(world, directory / name / folder)


def _fit(world: World, directory: Path, *, stop_after: int | None = None) -> None:
    train = toy_train(STEPS, engine=ENGINES[directory.parent.name])
    task = ToyTask(dropout=0.0)  # whose masks depend on the rank
    first_weights = 5 if stop_after or directory.name == "whole" else 99
    toy_fit(world, directory, train, task=task, trainable=LEARNS, stop_after=stop_after, first_weights=first_weights)


def _go_round(before: int, afters: Sequence[int], directory: Path) -> None:
    run_ranks(before, _whole_and_paused, directory, directory=directory)
    for after in afters:
        for name in ENGINES:
            copytree(directory / name / "paused", directory / name / f"on_{after}")
        run_ranks(after, _resumed, directory, f"on_{after}", directory=directory)
        for name in ENGINES:
            resumed, whole = (curve(directory / name / folder) for folder in (f"on_{after}", "whole"))
            assert list(resumed) == list(range(1, STEPS + 1))
            assert resumed == (whole if before == after else pytest.approx(whole, abs=1e-5))


def test_three_ranks_go_on_as_three_bit_for_bit_and_as_two_within_rounding(tmp_path: Path) -> None:
    _go_round(3, (3, 2), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("before", SIZES)
def test_any_number_of_ranks_goes_on_as_any_other(tmp_path: Path, before: int) -> None:
    _go_round(before, SIZES, tmp_path)
