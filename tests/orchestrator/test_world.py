"""Processes that meet at an address and a port, as they do on several nodes, each a program of its own."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.world import World
from tests.command_line import REPOSITORY
from tests.ranks import run_ranks

MEET = """
import json
import torch.distributed as dist
from orchestrator.world import World
world = World.from_environment(timeout_s=60)
told = {
    "gathered": world.gather(world.rank), "mean": world.mean({"a": world.rank})["a"],
    "highest": world.highest(world.rank), "any": world.any(flag=world.rank == 1), "main": world.is_main,
    "broadcast": world.broadcast(f"from {world.rank}"), "device": world.device,
}
dist.destroy_process_group()
print(json.dumps(told))
"""


def meet(size: int, **environment: str) -> list[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ORCH_RENDEZVOUS": "env://",
        "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": str(size), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "", **environment,
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", MEET], env={**common, "RANK": str(rank), "LOCAL_RANK": "0"}, text=True,
            stdout=subprocess.PIPE,
        )
        for rank in range(size)
    ]  # fmt: skip
    return [json.loads(rank.communicate(timeout=100)[0].splitlines()[-1]) for rank in ranks]


def _meet_late(world: World, meeting: str) -> dict[str, float]:
    """Leaves the group and meets again, rank 0 a second late; returns when it was connected and when it went on."""
    import torch.distributed as dist

    connect, connected = dist.init_process_group, 0.0

    def slowly(**options: Any) -> None:
        nonlocal connected
        connect(**options)
        time.sleep(1.0 if world.rank == 0 else 0.0)
        connected = time.monotonic()

    dist.destroy_process_group()
    os.environ["ORCH_RENDEZVOUS"] = f"file://{meeting}"
    dist.init_process_group = slowly
    World.from_environment(timeout_s=60)
    return {"connected": connected, "went on": time.monotonic()}


@pytest.mark.needs("torch")
def test_no_rank_goes_on_before_all_are_connected(tmp_path: Path) -> None:
    ranks = run_ranks(3, _meet_late, str(tmp_path / "again"), directory=tmp_path)

    assert min(rank["went on"] for rank in ranks) >= max(rank["connected"] for rank in ranks)


@pytest.mark.needs("torch")
@pytest.mark.slow
def test_ranks_that_know_only_an_address_and_a_port_meet_and_agree() -> None:
    first, second, third = meet(3)

    assert [rank["main"] for rank in (first, second, third)] == [True, False, False]
    for rank in (first, second, third):
        assert rank["gathered"] == [0, 1, 2]
        assert (rank["mean"], rank["highest"], rank["any"]) == (1.0, 2.0, True)
        assert (rank["broadcast"], rank["device"]) == ("from 0", "cpu")


def test_a_world_of_one_asks_nobody() -> None:
    world = World.alone()

    assert (world.gather("x"), world.highest(2.0), world.broadcast("y"), world.any(flag=False)) == (
        ["x"],
        2.0,
        "y",
        False,
    )
