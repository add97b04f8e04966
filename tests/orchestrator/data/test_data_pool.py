"""Worker processes that die, hang and stumble, and results that come in order all the same."""

import faulthandler
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.data.pool import MOST_PREFETCH, Workers, computed
from orchestrator.errors import InputError, WorkersLost
from tests.waiting import until


def pool(compute: Callable[[int], Any], count: int, number: int, **settings: Any) -> Iterator[Any]:
    workers = Workers(number=number, **settings)
    return computed(compute, count, workers, name_of=lambda number: f"number {number}")


def squared(number: int) -> tuple[int, int, int]:
    return number, number**2, os.getpid()


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def open_files() -> list[str]:
    links = (str(link) for link in Path("/proc/self/fd").iterdir())
    # looking opens one more, which is gone when it is asked about
    return sorted(link.readlink().name for link in map(Path, list(links)) if link.is_symlink())


def in_shared_memory(pid: int) -> list[str]:
    """Lists what a process has open or mapped under /dev/shm: other programs leave their own things there."""
    files = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    return [place for place in files + maps if "/dev/shm" in place]


def touched(directory: Path) -> int:
    return len(list(directory.iterdir()))


def crash() -> None:
    faulthandler.disable()  # pytest's: it would print where
    os.kill(os.getpid(), signal.SIGSEGV)


def kill(pid: int) -> None:
    if alive(pid):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [0, 1, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 50])
def test_results_come_in_order(number: int, count: int) -> None:
    found = list(pool(squared, count, number))

    assert [(i, i * i) for i in range(count)] == [result[:2] for result in found]
    assert len({result[2] for result in found}) <= max(1, number)


def test_without_workers_the_caller_computes() -> None:
    assert {os.getpid()} == {result[2] for result in pool(squared, 5, 0)}


@pytest.mark.parametrize("seed", range(5))
def test_workers_killed_at_any_moment_lose_and_repeat_nothing(seed: int) -> None:
    chance = random.Random(seed)
    pids, kills = set(), 0

    def slowly(number: int) -> tuple[int, int]:
        time.sleep(0.002)
        return number, os.getpid()

    for expected, (number, pid) in enumerate(pool(slowly, 100, 3)):
        assert expected == number
        pids.add(pid)
        if chance.random() < 0.2:
            time.sleep(chance.random() * 0.004)
            victim = chance.choice(sorted(pids))
            kills += alive(victim)
            kill(victim)
    assert kills >= 5
    assert len(pids) > 3


def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    def stops_once(number: int) -> int:
        if number == 5 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return number

    assert list(range(20)) == list(pool(stops_once, 20, 2, timeout_s=0.5))
    assert (tmp_path / "stopped").exists()


def test_a_worker_that_is_idle_or_slow_but_not_too_slow_is_left_alone() -> None:
    def slow(number: int) -> int:
        time.sleep(0.3)
        return os.getpid()

    results = pool(slow, 8, 2, timeout_s=2.0)
    first = next(results)
    time.sleep(2.5)  # the trainer is busy; the workers have nothing to do

    assert len({first, *results}) <= 2


@pytest.mark.parametrize(
    ("ends", "said", "timeout_s"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL", 60.0),
        (crash, "SIGSEGV", 60.0),
        (lambda: os._exit(7), "exit code 7", 60.0),
        (lambda: time.sleep(60), "it gave no result for ", 0.5),
    ],
    ids=["killed", "crash", "exit", "hang"],
)
def test_a_number_that_costs_three_workers_is_named_with_the_way_they_ended(
    ends: Callable[[], None], said: str, timeout_s: float
) -> None:
    def poisoned(number: int) -> int:
        if number == 4:
            ends()
        return number

    results = pool(poisoned, 10, 2, timeout_s=timeout_s)

    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(WorkersLost, match="3 data workers were lost over number 4:") as raised:
        next(results)
    assert str(raised.value).count(said) == 3


def test_no_worker_computes_further_ahead_than_it_may(tmp_path: Path) -> None:
    def noted(number: int) -> int:
        (tmp_path / str(number)).touch()
        return number

    results = pool(noted, 100, 2, prefetch=3)
    next(results)
    until(lambda: touched(tmp_path) >= 7)
    time.sleep(0.2)

    assert touched(tmp_path) == 7  # the one taken, and two times three
    next(results)
    until(lambda: touched(tmp_path) == 8)


@pytest.mark.parametrize("number", [0, 2])
def test_an_error_arrives_in_its_turn_with_its_type_and_notes(number: int) -> None:
    def fails(number: int) -> int:
        if number == 3:
            error = InputError("three is too many")
            error.add_note("noted")
            raise error
        return number

    results = pool(fails, 9, number)

    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError) as raised:
        next(results)
    assert str(raised.value) == "three is too many"
    assert raised.value.__notes__ == ["noted"]
    assert list(results) == []


def test_a_bug_arrives_with_the_place_where_it_happened() -> None:
    def stumbles(number: int) -> int:
        return {}[number]

    with pytest.raises(KeyError) as raised:
        next(pool(stumbles, 1, 1))
    assert "in stumbles" in raised.value.__notes__[0]


def test_a_result_that_cannot_travel_is_an_error_that_says_so() -> None:
    with pytest.raises(Exception, match="lambda"):
        next(pool(lambda number: lambda: number, 1, 1))


def test_tensors_travel() -> None:
    for number, tensor in enumerate(pool(lambda number: torch.full((1000, number), number), 5, 2)):
        assert torch.equal(tensor, torch.full((1000, number), number))


def test_a_result_that_is_kept_stays_as_it_was_whatever_comes_after_it() -> None:
    def numbered(number: int) -> torch.Tensor:
        return torch.full((10**4,), number)

    numbers = random.Random(0)
    kept: dict[int, torch.Tensor] = {}
    for number, tensor in enumerate(pool(numbered, 300, 2)):
        kept[number] = tensor
        for drop in [old for old in kept if old % 7 and numbers.random() < 0.3]:
            del kept[drop]
        del tensor

    assert len(kept) > 40
    assert all(torch.equal(tensor, torch.full((10**4,), number)) for number, tensor in kept.items())


def test_the_files_of_results_are_few_and_used_again_and_held_by_few_that_are_kept() -> None:
    def made(_: int) -> tuple[torch.Tensor, set[int]]:
        links = [link for link in list(Path("/proc/self/fd").iterdir()) if link.is_symlink()]
        return torch.zeros(10**4), {link.stat().st_ino for link in links if "orch-parcel" in str(link.readlink())}

    before = len(open_files())
    files = {inode for _, inodes in pool(made, 200, 1, prefetch=2) for inode in inodes}
    assert 1 <= len(files) <= 4

    kept = list(pool(made, 200, 1, prefetch=2))
    assert len(open_files()) <= before + 4
    assert all(torch.equal(tensor, torch.zeros(10**4)) for tensor, _ in kept)


def test_leaving_early_ends_the_workers_and_closes_their_files() -> None:
    before = open_files()
    results = pool(lambda _: (os.getpid(), torch.zeros(10)), 100, 3)
    pids = {next(results)[0] for _ in range(12)}
    results.close()  # type: ignore[attr-defined]  # it is a generator

    assert pids
    assert not any(alive(pid) for pid in pids)
    assert before == open_files()


def test_workers_that_die_leave_nothing_open_and_nothing_in_shared_memory() -> None:
    before = open_files()

    for tensor, pid, shared in pool(lambda _: (torch.zeros(10**5), os.getpid(), in_shared_memory(os.getpid())), 30, 2):
        assert torch.equal(tensor, torch.zeros(10**5))
        assert [] == shared == in_shared_memory(os.getpid())
        kill(pid)

    del tensor  # it keeps its memory open
    assert before == open_files()


def test_a_new_worker_holds_no_batches_and_no_lines_of_others() -> None:
    def held(_: int) -> tuple[int, list[str]]:
        return os.getpid(), [name for name in open_files() if "orch-parcel" in name or name.startswith("socket:")]

    own = sum(name.startswith("socket:") for name in open_files())
    seen = set()
    for pid, files in pool(held, 60, 3):
        assert pid in seen or len(files) == own + 1  # later it has files of its own
        seen.add(pid)
        kill(pid)


def test_a_worker_whose_child_outlives_it_is_missed_all_the_same() -> None:
    def leaves_a_child(number: int) -> int:
        if number == 1 and os.fork() == 0:
            time.sleep(3)  # and holds the worker's line open
            os._exit(0)
        return os.getpid()

    results = pool(leaves_a_child, 12, 1, prefetch=1)
    first = next(results)
    next(results)
    kill(first)

    assert first not in set(list(results)[1:])


def test_a_trainer_that_ignores_its_children_misses_none() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for expected, (number, _, pid) in enumerate(pool(squared, 30, 2)):
            assert expected == number
            kill(pid)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_stopped_worker_can_be_asked_for_as_much_as_is_allowed(tmp_path: Path) -> None:
    def stops_once(number: int) -> int:
        if not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return number

    assert list(range(200)) == list(pool(stops_once, 200, 1, prefetch=MOST_PREFETCH, timeout_s=0.5))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_signals_for_the_trainer_do_not_end_a_worker(number: signal.Signals) -> None:
    results = pool(lambda _: os.getpid(), 50, 1)
    pid = next(results)
    os.kill(pid, number)

    assert {pid} == set(results)


TRAINER = """
import os, sys, time
import torch
from orchestrator.data.pool import Workers, computed

def compute(number):
    if number > 4:
        os.write(1, f"{os.getpid()}\\n".encode())
        time.sleep(60)
    return torch.zeros(10**6)

for _ in computed(compute, 100, Workers(number=3), name_of=str):
    pass
"""


def test_when_the_trainer_is_killed_no_worker_and_no_shared_memory_is_left() -> None:
    with subprocess.Popen([sys.executable, "-c", TRAINER], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        workers = [int(trainer.stdout.readline()) for _ in range(3)]
        assert all(alive(pid) for pid in workers)
        shared = [place for pid in (trainer.pid, *workers) for place in in_shared_memory(pid)]
        trainer.kill()

        until(lambda: not any(alive(pid) for pid in workers))
    assert shared == []
