"""Export writes tensor by tensor: what others read is what was stored, and memory does not grow with the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from orchestrator.errors import SurroundingsError
from orchestrator.training import elastic, writing
from orchestrator.training.foreign.opening import open_source
from orchestrator.training.foreign.source import Entry, Held
from orchestrator.training.foreign.writing import write_shards
from orchestrator.world import World

INDEX = "model.safetensors.index.json"
TENSORS = {
    "matrix": torch.arange(12.0).view(3, 4).T,  # not contiguous
    "half": torch.randn(5).bfloat16(),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "flags": torch.tensor([True, False, True]),
    "empty": torch.empty(0, 4),
    "näme": torch.ones(2, dtype=torch.float16),
}


def test_every_type_and_shape_is_read_back_by_safetensors(tmp_path: Path) -> None:
    facts = write_shards(Held("memory", TENSORS), tmp_path, index=INDEX, max_shard_bytes=10**6)

    read = load_file(tmp_path / "model-00001-of-00001.safetensors")
    assert set(read) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    with safe_open(tmp_path / "model-00001-of-00001.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert facts == {"parameters": 23, "size_bytes": 12 * 4 + 10 + 8 + 3 + 4, "tensors": 6, "shards": 1}


def test_files_are_bounded_and_a_larger_tensor_has_one_to_itself(tmp_path: Path) -> None:
    tensors = {name: torch.full((size,), 1.0) for name, size in (("a", 10), ("b", 10), ("c", 50), ("d", 5))}

    write_shards(Held("memory", tensors), tmp_path, index=INDEX, max_shard_bytes=100)

    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    files = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert weight_map == {"a": files[0], "b": files[0], "c": files[1], "d": files[2]}
    source = open_source(tmp_path)
    assert all(torch.equal(source.read(name), tensor) for name, tensor in tensors.items())


class _Failing(Held):
    """Breaks in the middle of a file."""

    def read(self, name: str) -> Tensor:
        if name == "b":
            raise OSError(28, "No space left on device")
        return super().read(name)


def test_an_export_that_breaks_leaves_no_half_file(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(100), "b": torch.ones(100)}

    with pytest.raises(SurroundingsError, match="No space left"):
        write_shards(_Failing("memory", tensors), tmp_path, index=INDEX, max_shard_bytes=10**6)

    assert list(tmp_path.iterdir()) == []


def test_weights_that_cannot_fit_on_the_disk_are_refused_at_once(tmp_path: Path) -> None:
    source = Held("memory", {})
    source.entries["vast"] = Entry(shape=(10**9, 10**9), dtype=torch.float32)

    with pytest.raises(SurroundingsError, match=r"the weights take 4000000000\.0 GB"):
        write_shards(source, tmp_path, index=INDEX, max_shard_bytes=10**6)


# 64 MiB a weight: what is smaller may stay in the allocator's own heap when it is freed
ROWS, COLUMNS, RANK, LAYERS = 4096, 4096, 8, 7


def _checkpoint(directory: Path) -> int:
    """Writes weights with adapters; returns their bytes."""
    for layer in range(LAYERS):
        tensors = {
            f"layers.{layer}.base_layer.weight": torch.full((ROWS, COLUMNS), float(layer)),
            f"layers.{layer}.lora_A.default.weight": torch.ones(RANK, COLUMNS),
            f"layers.{layer}.lora_B.default.weight": torch.ones(ROWS, RANK),
        }
        pieces = [elastic.whole(*item) for item in tensors.items()]
        writing.write(directory / str(layer) / elastic.WEIGHTS, pieces, World.alone())
    return LAYERS * ROWS * COLUMNS * 4


PROGRAM = """
import sys
from pathlib import Path
from orchestrator.training.foreign.adapters import LowRank, Merged, Renamed
from orchestrator.training.foreign.source import Joined
from orchestrator.training.foreign.writing import write_shards
from orchestrator.training.weights import StoredWeights
import torch

def resident(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))

def export(checkpoints, out, layers):
    source = Joined("all", [StoredWeights(path) for path in checkpoints])
    added, names = {}, {}
    for n in layers:
        name = f"layers.{n}.base_layer.weight"
        added[name] = LowRank(down=f"layers.{n}.lora_A.default.weight", up=f"layers.{n}.lora_B.default.weight", scale=2)
        names[f"layers.{n}.weight"] = name
    out.mkdir()
    write_shards(Renamed(Merged(source, source, added, {}), names), out, index="i.json", max_shard_bytes=150 << 20)

torch.set_num_threads(1)
root = Path(sys.argv[1])
export([root / "tiny"], root / "warm", [0])  # what is imported on first use is no memory of the export
before = resident("VmRSS:")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
export([root / str(n) for n in range(int(sys.argv[2]))], root / "out", range(int(sys.argv[2])))
print(resident("VmHWM:") - before)
"""


@pytest.mark.slow
def test_export_with_merging_needs_twice_the_largest_tensor_at_most(tmp_path: Path) -> None:
    total = _checkpoint(tmp_path)
    tiny = {"layers.0.base_layer.weight": (4, 4), "layers.0.lora_A.default.weight": (1, 4)}
    pieces = [elastic.whole(n, torch.ones(s)) for n, s in {**tiny, "layers.0.lora_B.default.weight": (4, 1)}.items()]
    writing.write(tmp_path / "tiny" / elastic.WEIGHTS, pieces, World.alone())

    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(LAYERS)], capture_output=True, text=True, check=False
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    largest, peak = ROWS * COLUMNS * 4, int(ran.stdout)
    slack = 32 << 20  # blocks in double precision, and what the matrix product keeps for itself
    assert peak <= 2 * largest + slack, f"{peak / 2**20:.0f} MiB for a largest tensor of {largest >> 20} MiB"
    assert peak < total / 3
    merged = open_source(tmp_path / "out" / "model-00004-of-00004.safetensors")
    assert bool(merged.read("layers.6.weight").eq(6 + 2 * RANK).all())
