"""Runs a function on several real gloo ranks, each its own process, and brings back what each returned."""

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from orchestrator.world import World

_ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


class RankFailed(AssertionError):
    """A rank raised, died or took too long; the message names it."""


def run_ranks(
    size: int, function: Callable[..., Any], *arguments: Any, directory: Path, timeout_s: float = 240.0
) -> list[Any]:
    """Calls `function(world, *arguments)` on `size` ranks and returns what they returned, in rank order.

    The ranks meet through a file in `directory` (pytest's tmp_path), so no port can collide. A rank that dies or raises
    ends the others at once.
    """
    meeting = directory / f"meeting-{time.monotonic_ns()}"
    context = _context()
    pipes, processes = [], []
    for rank in range(size):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_rank, args=(sender, rank, size, str(meeting), function, arguments), daemon=False
        )
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        return _collect(pipes, time.monotonic() + timeout_s)
    finally:
        for process in processes:
            process.join(timeout=2)
            process.kill()
            process.join()
        meeting.unlink(missing_ok=True)


def _context() -> ForkServerContext:
    """Returns processes that find the heavy packages imported already: seconds saved for each rank."""
    os.environ.update(_ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")
    packages = (
        "orchestrator.training.deepspeed",
        "orchestrator.training.loop",
        "orchestrator.training.parallel.tensor",
    )
    context.set_forkserver_preload([*packages, "tests.toys"])
    return context


def _collect(pipes: Sequence[Connection], deadline: float) -> list[Any]:
    answers: dict[int, Any] = {}
    while len(answers) < len(pipes):
        silent = [rank for rank in range(len(pipes)) if rank not in answers]
        ready = wait([pipes[rank] for rank in silent], timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankFailed(f"rank {', '.join(map(str, silent))} did not answer in time")
        failures = []
        for rank in silent:
            if pipes[rank] not in ready:
                continue
            try:
                failed_at, answers[rank] = pipes[rank].recv()
            except EOFError:
                raise RankFailed(f"rank {rank} died without a word") from None
            if failed_at is not None:
                failures.append((failed_at, rank))
        if failures:
            _, rank = min(failures)  # the others may have failed because this one left
            raise RankFailed(f"rank {rank} raised:\n{answers[rank]}")
    return [answers[rank] for rank in range(len(pipes))]


def _rank(
    answer: Connection, rank: int, size: int, meeting: str, function: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), ORCH_RENDEZVOUS=f"file://{meeting}")
    os.environ.update(_ENVIRONMENT)
    sys.stdout = sys.stderr
    import torch

    torch.set_num_threads(1)
    try:
        world = World.from_environment(timeout_s=180)
        result = function(world, *arguments)
        torch.distributed.destroy_process_group()
    except BaseException:  # noqa: BLE001 - whatever it was, the test must hear of it
        answer.send((time.monotonic(), traceback.format_exc()))
    else:
        answer.send((None, result))
    answer.close()
    sys.stderr.flush()
    os._exit(0)  # DeepSpeed's exit hooks wait for a process group that may be gone
