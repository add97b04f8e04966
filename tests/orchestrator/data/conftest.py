"""Sets of shards for the tests of the data plane."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.artifacts import Shards
from orchestrator.data.adopt import adopt
from orchestrator.data.remote import Remote
from orchestrator.data.writer import ShardWriter
from tests.rangeserver import RangeServer, serving

MakeShards = Callable[..., Path]


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """Writes sets of shards: make_shards("a", 25) holds a-0 .. a-24, ten samples a tar."""

    def make(name: str, samples: int, *, samples_per_shard: int = 10) -> Path:
        directory = tmp_path / name
        with ShardWriter(directory, samples_per_shard=samples_per_shard) as writer:
            for i in range(samples):
                text = json.dumps({"name": name, "i": i}).encode()
                writer.write(f"{name}-{i}", {"jpg": bytes([i % 251]) * (100 + 37 * i), "json": text})
            facts = writer.close()
        Shards(directory).commit("fingerprint", facts=facts, sha256=writer.sha256)
        return directory

    return make


def silent(done: int, total: int) -> None:
    """Shows no progress."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    """Serves a folder by ranges."""
    (tmp_path / "far").mkdir()
    with serving(tmp_path / "far") as server:
        yield server


@pytest.fixture
def remote_set(make_shards: MakeShards, server: RangeServer, tmp_path: Path) -> Path:
    """A set whose 25 samples lie behind a URL, with its indexes here."""
    for tar in make_shards("a", 25).glob("*.tar"):
        tar.rename(server.folder / tar.name)
    remote = Remote(attempts=3, first_wait_s=0.01)
    adopt(server.url("shard-{000000..000002}.tar"), tmp_path / "set", processes=1, remote=remote, advance=silent)
    server.requests.clear()
    return tmp_path / "set"
