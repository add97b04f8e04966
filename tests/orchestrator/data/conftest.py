"""Sets of shards for the tests of the data plane."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.artifacts import Shards
from orchestrator.data.writer import ShardWriter

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
