"""The ranks that tests run on: what went wrong on one of them is told with its number."""

import os
import time
from pathlib import Path

import pytest

from orchestrator.world import World
from tests.ranks import RankFailed, run_ranks


def _meet(world: World, word: str) -> tuple[int, list[str], str, dict[str, float], bool]:
    mine = f"{word}{world.rank}"
    mean = world.mean({"rank": float(world.rank)})
    return world.rank, world.gather(mine), world.broadcast(mine), mean, world.any(flag=world.rank == 2)


def _raise(world: World) -> None:
    if world.rank == 1:
        raise ZeroDivisionError("of all things")
    world.barrier()


def _die(world: World) -> None:
    if world.rank == 1:
        os._exit(3)
    time.sleep(60)


def _dawdle(world: World) -> None:
    if world.rank == 0:
        time.sleep(60)


def test_every_rank_meets_the_others_and_answers_in_order(tmp_path: Path) -> None:
    answers = run_ranks(3, _meet, "r", directory=tmp_path)

    assert answers == [(rank, ["r0", "r1", "r2"], "r0", {"rank": 1.0}, True) for rank in range(3)]


def test_an_exception_is_told_with_its_rank(tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match=r"(?s)rank 1 raised.*ZeroDivisionError: of all things"):
        run_ranks(2, _raise, directory=tmp_path)


def test_a_death_is_told_with_its_rank(tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match="rank 1 died without a word"):
        run_ranks(2, _die, directory=tmp_path)


def test_a_rank_that_takes_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match="rank 0 did not answer in time"):
        run_ranks(2, _dawdle, directory=tmp_path, timeout_s=8)


def test_a_world_alone_answers_for_itself() -> None:
    world = World.alone()

    assert world.is_main
    assert (world.gather(1), world.broadcast(2), world.mean({"a": 3.0}), world.any(flag=True)) == (
        [1],
        2,
        {"a": 3.0},
        True,
    )
