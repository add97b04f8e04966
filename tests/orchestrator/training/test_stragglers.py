"""Slow ranks of a training whose steps take all ranks equally long."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.journal import read_events
from orchestrator.training.stragglers import Pace, Stragglers, needs
from orchestrator.world import World
from tests.ranks import run_ranks
from tests.toys import toy_context


def paces(*pairs: tuple[float, float]) -> list[Pace]:
    return [Pace(node=f"n{rank}", wait_s=wait_s, unit_s=unit_s) for rank, (wait_s, unit_s) in enumerate(pairs)]


def test_ranks_that_are_alike_need_alike() -> None:
    assert needs(paces((0.1, 0.001), (0.1, 0.001)), 1.0) == pytest.approx([1.0, 1.0])


def test_a_rank_that_computes_half_as_fast_needs_twice_as_long_though_steps_are_common() -> None:
    assert needs(paces((0.0, 0.001), (0.0, 0.002), (0.0, 0.001)), 1.0) == pytest.approx([0.5, 1.0, 0.5])


def test_a_rank_that_waits_for_data_makes_the_others_wait_and_is_told_from_them() -> None:
    assert needs(paces((0.0, 0.001), (0.9, 0.001)), 1.0) == pytest.approx([0.1, 1.0])


def test_a_little_waiting_of_a_long_step_is_no_matter() -> None:
    first, second = needs(paces((0.001, 0.001), (0.05, 0.001)), 5.0)

    assert second / first < 1.02


@pytest.fixture
def hog() -> Iterator[int]:
    """Keeps a core busy, and returns its number."""
    core = min(os.sched_getaffinity(0))
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    os.sched_setaffinity(process.pid, {core})
    yield core
    process.kill()
    process.wait()


def compare(world: World, directory: str, core: int) -> Any:
    context = toy_context(Path(directory) / "stage", world)
    if world.rank == 1:
        os.sched_setaffinity(0, {core})
        os.nice(10)  # below the hog, whatever niceness the tests have
    stragglers = Stragglers(context)
    for step in range(1, 6):
        # ten seconds since the last look: enough to compute that the kernel's favour for who has just woken is used up
        stragglers._looked -= 10.0
        stragglers.look(step, world.gather(stragglers.pace(0.01 * world.rank)), step_s=1.0)
    context.journal.close()


@pytest.mark.slow
def test_a_rank_on_a_busy_core_is_reported_once_with_its_node(tmp_path: Path, hog: int) -> None:
    run_ranks(2, compare, str(tmp_path), hog, directory=tmp_path)
    found = [event for event in read_events(tmp_path / "stage") if event["event"] == "straggler"]

    assert [(event["rank"], event["node"]) for event in found] == [(1, os.uname().nodename)]
    assert found[0]["compute_times"] > 1.5
