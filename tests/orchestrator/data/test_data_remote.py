"""Tars behind URLs: by ranges, with patience, and never a wrong sample."""

import multiprocessing
import pickle
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.data.adopt import adopt
from orchestrator.data.reader import ShardSet
from orchestrator.data.remote import Remote, RemoteFile, open_place
from orchestrator.data.stream import Drawn, SampleStream
from orchestrator.errors import DamagedSample, InputError
from tests.orchestrator.data.conftest import MakeShards, silent
from tests.rangeserver import FAULTS, RangeServer

QUICK = Remote(attempts=3, first_wait_s=0.01)


def test_a_sample_behind_a_url_is_one_range(remote_set: Path, server: RangeServer) -> None:
    shards = ShardSet(remote_set, remote=QUICK)

    keys = [shards.read(number)[0] for number in (3, 7, 12, 24)]

    assert [f"a-{number}" for number in (3, 7, 12, 24)] == keys
    assert len(server.requests) == 4
    assert all(asked.startswith("bytes=") for _, asked in server.requests)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_once_or_twice_is_tried_again(remote_set: Path, server: RangeServer, fault: str) -> None:
    server.faults.extend([fault, fault])

    assert ShardSet(remote_set, remote=QUICK).read(3)[0] == "a-3"
    assert not server.faults


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_on_failing_is_a_lost_sample_with_its_name(remote_set: Path, server: RangeServer, fault: str) -> None:
    server.always = fault
    shards = ShardSet(remote_set, remote=QUICK)

    with pytest.raises(DamagedSample, match="3 attempts failed") as caught:
        shards.read(13)
    server.always = ""

    assert (server.url("shard-000001.tar"), "a-13") == (caught.value.tar, caught.value.key)
    assert shards.read(13)[0] == "a-13"


def test_a_server_that_is_out_of_order_for_a_moment_has_lost_no_file(remote_set: Path, server: RangeServer) -> None:
    server.heads = "error 503"
    server.faults.extend(["error 503", "error 500"])

    assert RemoteFile(server.url("shard-000001.tar"), QUICK).size() > 0
    assert not server.faults


def test_a_server_that_is_away_is_not_one_without_the_file() -> None:
    with socket.socket() as held:  # bound and not listening: nobody answers there
        held.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="3 attempts failed") as caught:
            RemoteFile(f"http://127.0.0.1:{held.getsockname()[1]}/a.tar", QUICK)

    assert not isinstance(caught.value, FileNotFoundError)


def test_a_file_that_a_server_does_not_have_is_not_asked_for_again(server: RangeServer) -> None:
    with pytest.raises(FileNotFoundError):
        RemoteFile(server.url("no.tar"), QUICK)

    assert len(server.requests) == 1


def test_a_refusal_is_not_asked_again(remote_set: Path, server: RangeServer) -> None:
    server.always = "error 403"

    with pytest.raises(DamagedSample, match="403"):
        ShardSet(remote_set, remote=QUICK).read(3)
    assert len(server.requests) == 1


def test_a_server_without_ranges_is_named(remote_set: Path, server: RangeServer) -> None:
    server.always = "no ranges"

    with pytest.raises(DamagedSample, match="does not answer ranges"):
        ShardSet(remote_set, remote=QUICK).read(3)


def test_a_tar_that_vanished_loses_its_samples_and_no_others(remote_set: Path, server: RangeServer) -> None:
    (server.folder / "shard-000001.tar").unlink()
    shards = ShardSet(remote_set, remote=QUICK)

    with pytest.raises(DamagedSample, match="missing") as caught:
        shards.read(13)

    assert caught.value.key == "a-13"
    assert [shards.read(3)[0], shards.read(23)[0]] == ["a-3", "a-23"]


def test_a_tar_that_was_cut_keeps_what_is_left(remote_set: Path, server: RangeServer) -> None:
    tar = server.folder / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:15_000])
    shards, kept = ShardSet(remote_set, remote=QUICK), []

    for number in range(10):
        try:
            kept.append(shards.read(number)[0])
        except DamagedSample as error:
            assert error.key == f"a-{number}"  # noqa: PT017

    assert [f"a-{number}" for number in range(len(kept))] == kept
    assert len(kept) > 4


def test_a_flipped_byte_on_the_way_is_no_sample(remote_set: Path, server: RangeServer) -> None:
    shards = ShardSet(remote_set, remote=QUICK)
    server.faults.append("flipped")

    assert shards.read(9)[0] == "a-9"
    server.always = "flipped"
    with pytest.raises(DamagedSample, match=r"'a-8': member 'jpg': .*checksum"):
        shards.read(8)


def test_a_folder_of_a_server_that_lists_is_adopted(remote_set: Path, server: RangeServer, tmp_path: Path) -> None:
    adopt(server.url(""), tmp_path / "listed", processes=1, remote=QUICK, advance=silent)

    assert len(ShardSet(tmp_path / "listed")) == len(ShardSet(remote_set))


def test_urls_of_other_drivers_are_read_too(make_shards: MakeShards) -> None:
    import fsspec

    tar = make_shards("a", 3) / "shard-000000.tar"
    with fsspec.open("memory://bucket/a.tar", "wb") as file:
        file.write(tar.read_bytes())

    for url in ("memory://bucket/a.tar", tar.as_uri()):
        assert open_place(url, QUICK).read(100, 50) == tar.read_bytes()[100:150]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://user:secret@host/a.tar", "holds a secret"),
        ("https://host/a.tar?X-Amz-Signature=abc", "holds a secret"),
        ("ssh://host/a.tar", "is not read; allowed"),
        ("https://host::/a.tar", "is not read"),
    ],
)
def test_a_url_that_we_do_not_read_is_refused(url: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        open_place(url, QUICK)
    assert "abc" not in str(caught.value)


def test_a_missing_driver_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"abfs://box/a\.tar cannot be read here: .*adlfs"):
        open_place("abfs://box/a.tar", QUICK)


def test_an_open_set_goes_to_another_process(remote_set: Path) -> None:
    shards = ShardSet(remote_set, remote=QUICK)
    expected = shards.read(3)

    again = pickle.loads(pickle.dumps(shards))  # noqa: S301  # our own, made in this line
    assert expected == again.read(3)


def test_a_file_behind_a_url_forgets_its_driver_on_the_way(remote_set: Path, server: RangeServer) -> None:
    place = RemoteFile(server.url("shard-000000.tar"), QUICK)

    again = pickle.loads(pickle.dumps(place))  # noqa: S301  # our own, made in this line
    assert place.read(0, 100) == again.read(0, 100)


def read_in_child(shards: ShardSet, results: "multiprocessing.Queue[list[str]]") -> None:
    results.put([shards.read(number)[0] for number in (3, 4, 13)])


def test_a_forked_worker_reads_on_with_a_driver_of_its_own(remote_set: Path, server: RangeServer) -> None:
    shards = ShardSet(remote_set, remote=QUICK)
    shards.read(3)  # from now on the driver has a thread, which a child does not inherit
    fork = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[list[str]] = fork.Queue()
    workers = [fork.Process(target=read_in_child, args=(shards, results)) for _ in range(2)]

    for worker in workers:
        worker.start()
    found = [results.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join()

    assert found == [["a-3", "a-4", "a-13"]] * 2
    assert shards.read(5)[0] == "a-5"


def test_batches_come_from_behind_a_url_through_workers_and_a_cache(
    remote_set: Path, server: RangeServer, tmp_path: Path
) -> None:
    attempts = len(FAULTS) + 1  # one worker may meet them all
    remote = Remote(cache_folder=str(tmp_path / "cache"), piece_bytes=4096, attempts=attempts, first_wait_s=0.01)
    server.faults.extend(FAULTS)

    def keys(workers: int) -> list[list[str]]:
        stream = SampleStream(
            {"a": remote_set}, weights={}, seed=1, global_batch=5, micro_batch=5, world_rank=0, world_size=1,
            workers=workers, remote=remote,
        )  # fmt: skip
        return list(stream.batches(as_keys, start_step=0, steps=5))

    assert keys(2) == keys(0)
    assert len(server.requests) - len(FAULTS) == len(set(server.requests))


def as_keys(drawn: Sequence[Drawn]) -> list[str]:
    return [sample.key for sample in drawn]
