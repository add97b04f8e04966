"""Sets of a hundred thousand tars and a thousand million samples: little memory, few handles."""

import json
import multiprocessing
import resource
import shutil
import time
from pathlib import Path

import pytest

from orchestrator.data.index import TarIndex
from orchestrator.data.reader import ShardReader, ShardSet
from tests.orchestrator.data.conftest import MakeShards

TARS, SAMPLES_PER_TAR = 100_000, 10_000
SPAWN = multiprocessing.get_context("spawn")


def write_manifest(folder: Path) -> None:
    """Writes the manifest of a very large set, whose tars nobody needs to open it."""
    entries = []
    for number in range(TARS):
        for suffix, size in (("idx", 900_000), ("tar", 250_000_000)):
            name = f"shard-{number:06d}.{suffix}"
            entries.append(f'{{"path":"{name}","size_bytes":{size},"sha256":"{number:064x}"}}')
    counts = json.dumps([SAMPLES_PER_TAR] * TARS)
    facts = f'{{"samples": {TARS * SAMPLES_PER_TAR}, "samples_per_tar": {counts}}}'
    text = f'{{"kind":"shards","fingerprint":"f","digest":"d","files":[{",".join(entries)}],"facts":{facts}}}'
    (folder / "manifest.json").write_text(text)


def memory_mb(kind: str) -> float:
    """Reads VmRSS (now) or VmHWM (at most) of this process; ru_maxrss would count that of its parent too."""
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return int(status[kind].split()[0]) / 1024


def measure(folder: Path, results: "multiprocessing.Queue[dict[str, float]]") -> None:
    """Opens a set in a process that has done nothing else, and says what it took."""
    before_mb, started = memory_mb("VmRSS"), time.monotonic()
    shards = ShardSet(folder)
    found = {"samples": len(shards), "seconds": time.monotonic() - started, "tar": shards.locate(987_654_321)[0]}
    results.put(found | {"kept_mb": memory_mb("VmRSS") - before_mb, "peak_mb": memory_mb("VmHWM") - before_mb})


def test_a_thousand_million_samples_are_opened_in_little_memory(tmp_path: Path) -> None:
    write_manifest(tmp_path)
    results: multiprocessing.Queue[dict[str, float]] = SPAWN.Queue()
    process = SPAWN.Process(target=measure, args=(tmp_path, results))
    process.start()
    found = results.get(timeout=120)
    process.join()

    assert found["samples"] == 10**9
    assert found["tar"] == 98_765
    assert found["kept_mb"] < 100
    assert found["peak_mb"] < 200
    assert found["seconds"] < 30


def test_more_tars_than_the_system_lets_a_process_open_are_read(make_shards: MakeShards) -> None:
    directory = make_shards("a", 300, samples_per_shard=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/proc/self/fd").iterdir()))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 40, hard))
        for open_tars in (None, 10_000):  # chosen by us, or too large and found out
            with ShardSet(directory, open_tars=open_tars) as shards:
                keys = [shards.read(number)[0] for number in range(300)]
            assert [f"a-{number}" for number in range(300)] == keys
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_indexes_in_memory_have_a_limit_too(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_shards("a", 100, samples_per_shard=5)
    size = len(TarIndex.load(directory / "shard-000000.idx").body)
    monkeypatch.setattr("orchestrator.data.reader._INDEX_BYTES", 4 * size)

    with ShardSet(directory) as shards:
        for number in range(100):
            shards.read(number)
        assert len(shards._readers) <= 4


def test_reading_a_tar_again_and_again_leaves_nothing_open(make_shards: MakeShards) -> None:
    directory = make_shards("a", 20)
    shutil.copy(directory / "shard-000000.tar", directory / "shard-000001.tar")  # of another size than is promised
    before = len(list(Path("/proc/self/fd").iterdir()))

    for _ in range(5):
        reader = ShardReader(directory / "shard-000000.tar")
        reader.read(3)
        reader.close()

    assert before == len(list(Path("/proc/self/fd").iterdir()))
