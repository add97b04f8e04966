"""Pieces of remote tars on this node: under a limit, for many processes, also for those that are killed."""

import fcntl
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.data.cache import Cache
from orchestrator.data.reader import ShardSet
from orchestrator.data.remote import Remote
from orchestrator.errors import InputError, SurroundingsError
from tests.rangeserver import RangeServer

PIECE = 4096
SPAWN = multiprocessing.get_context("spawn")


def with_cache(folder: Path, limit: int = 10**6) -> Remote:
    return Remote(cache_folder=str(folder), cache_bytes=limit, piece_bytes=PIECE, attempts=3, first_wait_s=0.01)


def pieces(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "pieces").iterdir() if not path.name.startswith("."))


def used(cache: Path) -> int:
    return sum(path.stat().st_size for path in (cache / "pieces").iterdir())


def piece(byte: int) -> Callable[[], bytes]:
    return lambda: bytes([byte]) * PIECE


def read_all(path: Path, remote: Remote, results: "multiprocessing.Queue[list[str]]") -> None:
    shards = ShardSet(path, remote=remote)
    results.put([shards.read(number)[0] for number in range(len(shards))])


def fetch_slowly(folder: Path, started: Path) -> None:
    """Fetches a piece for so long that it is killed meanwhile."""

    def fetch() -> bytes:
        started.touch()
        time.sleep(60)
        return b""

    Cache(folder, 10**6).read("p", PIECE, 0, 1, fetch)


def write_slowly(folder: Path) -> None:
    """Writes pieces until it is killed."""
    cache, number = Cache(folder, 10 * PIECE), 0
    while True:
        cache.read(f"p{number}", PIECE, 0, 1, piece(number % 256))
        number += 1


def test_what_was_read_once_is_not_fetched_again(remote_set: Path, server: RangeServer, tmp_path: Path) -> None:
    first = ShardSet(remote_set, remote=with_cache(tmp_path / "cache"))
    expected = [first.read(number) for number in range(25)]
    asked = len(server.requests)

    second = ShardSet(remote_set, remote=with_cache(tmp_path / "cache"))

    assert expected == [second.read(number) for number in range(25)]
    assert asked == len(server.requests)
    assert asked == len(set(server.requests))


def test_processes_that_want_the_same_fetch_it_once(remote_set: Path, server: RangeServer, tmp_path: Path) -> None:
    server.delay_s = 0.02
    results: multiprocessing.Queue[list[str]] = SPAWN.Queue()
    ranks = [
        SPAWN.Process(target=read_all, args=(remote_set, with_cache(tmp_path / "cache"), results)) for _ in range(3)
    ]
    for rank in ranks:
        rank.start()
    found = [results.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join()

    assert [[f"a-{number}" for number in range(25)]] * 3 == found
    assert len(server.requests) == len(set(server.requests))


@pytest.mark.parametrize("damage", [b"", b"\0" * PIECE, b"short"])
def test_a_damaged_piece_is_fetched_again(remote_set: Path, server: RangeServer, tmp_path: Path, damage: bytes) -> None:
    remote = with_cache(tmp_path / "cache")
    expected = [ShardSet(remote_set, remote=remote).read(number) for number in range(25)]
    for path in pieces(tmp_path / "cache"):
        path.write_bytes(damage)

    shards = ShardSet(remote_set, remote=remote)

    assert expected == [shards.read(number) for number in range(25)]


def test_a_sample_that_is_damaged_afar_is_lost_after_one_more_try(
    remote_set: Path, server: RangeServer, tmp_path: Path
) -> None:
    tar = server.folder / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b'"i": 4', b'"i": 5'))
    shards = ShardSet(remote_set, remote=with_cache(tmp_path / "cache"))

    with pytest.raises(InputError, match="'a-4': member 'json'"):
        shards.read(4)
    asked = len(server.requests)
    assert shards.read(6)[0] == "a-6"
    assert asked == 2


def test_the_limit_holds_and_what_was_read_last_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10 * PIECE)
    for number in range(40):
        cache.read(f"p{number}", PIECE, 0, 10, piece(number))
        cache.read("p0", PIECE, 0, 10, piece(0))
        assert used(tmp_path) <= 10 * PIECE
        time.sleep(0.002)

    names = {path.name for path in pieces(tmp_path)}
    assert {"p0", "p39", "p38"} <= names
    assert len(names) >= 8


def test_the_limit_holds_for_many_at_once(tmp_path: Path) -> None:
    caches = [Cache(tmp_path, 10 * PIECE) for _ in range(4)]
    most = 0

    def fill(rank: int) -> None:
        for number in range(30):
            caches[rank].read(f"p{rank}-{number}", PIECE, 0, 10, piece(number))

    threads = [threading.Thread(target=fill, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with (tmp_path / "room").open("a+b") as counter:  # a piece that gets its name meanwhile would count twice
            fcntl.flock(counter, fcntl.LOCK_EX)
            most = max(most, used(tmp_path))

    assert used(tmp_path) <= 10 * PIECE
    assert most <= 10 * PIECE


def test_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    rank = SPAWN.Process(target=fetch_slowly, args=(tmp_path, tmp_path / "started"))
    rank.start()
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    os.kill(rank.pid or 0, signal.SIGKILL)
    rank.join()

    before = time.monotonic()
    assert Cache(tmp_path, 10**6).read("p", PIECE, 5, 3, piece(7)) == b"\7\7\7"
    assert time.monotonic() - before < 20


def test_a_killed_writer_leaves_no_torn_piece(tmp_path: Path) -> None:
    for wait_s in (0.0, 0.013, 0.029):
        rank = SPAWN.Process(target=write_slowly, args=(tmp_path,))
        rank.start()
        while not (tmp_path / "pieces").exists() or not pieces(tmp_path):
            time.sleep(0.01)
        time.sleep(wait_s)
        os.kill(rank.pid or 0, signal.SIGKILL)
        rank.join()

        for path in pieces(tmp_path):
            assert path.read_bytes() == bytes([int(path.name[1:]) % 256]) * PIECE


def test_drafts_that_nobody_finishes_are_cleared_away(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 4 * PIECE)
    draft = tmp_path / "pieces" / ".p.1.draft"
    draft.write_bytes(bytes(3 * PIECE))
    os.utime(draft, (0, 0))

    for number in range(4):
        cache.read(f"p{number}", PIECE, 0, 1, piece(number))

    assert not draft.exists()
    assert used(tmp_path) <= 4 * PIECE


def test_without_room_it_is_read_without_a_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 4 * PIECE)
    (tmp_path / "pieces" / ".p.1.draft").write_bytes(bytes(4 * PIECE))  # another process is writing it just now

    assert cache.read("p", PIECE, 0, 2, piece(3)) == b"\3\3"
    assert pieces(tmp_path) == []


def test_a_cache_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(SurroundingsError, match=r"cannot keep a cache in .*file"):
        Cache(tmp_path / "file", 10**6)
    with pytest.raises(ValueError, match="cache_bytes must be"):
        Remote(cache_folder=str(tmp_path), cache_bytes=PIECE, piece_bytes=PIECE)
