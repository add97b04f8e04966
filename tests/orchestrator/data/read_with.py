"""Reads a folder of tars with somebody else's library and prints what it delivers, member by member, as digests.

A program of its own, because what these libraries warn about is theirs, and a warning is an error in our tests:
python tests/orchestrator/data/read_with.py energon FOLDER
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

Delivered = Iterator[tuple[str, Mapping[str, Any]]]


def main() -> None:
    """Prints {key: {extension: digest}}, or ends with the library's own error."""
    reader, folder = READERS[sys.argv[1]], Path(sys.argv[2])
    found: dict[str, dict[str, str]] = {}
    for key, members in reader(folder):
        assert key not in found, f"{key} was delivered twice"
        found[key] = {extension: digest(content) for extension, content in members.items()}
    sys.stdout.write(json.dumps(found))


def digest(content: Any) -> str:
    """Names a content; what was decoded from JSON is written as JSON again first."""
    plain = content if isinstance(content, bytes) else json.dumps(content, sort_keys=True).encode()
    return hashlib.sha256(plain).hexdigest()


def with_webdataset(folder: Path) -> Delivered:
    """Reads as its manual does."""
    import webdataset

    for sample in webdataset.WebDataset([str(tar) for tar in sorted(folder.glob("*.tar"))], shardshuffle=False):
        yield sample["__key__"], _members(sample)


def with_energon(folder: Path) -> Delivered:
    """Reads what `energon prepare` has accepted, as raw bytes."""
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        Sample,
        WorkerConfig,
        basic_sample_keys,
        get_loader,
        get_val_dataset,
        stateless,
    )  # fmt: skip

    @dataclass
    class Raw(Sample):
        members: dict[str, bytes]

    @stateless
    def cook(crude: dict[str, Any]) -> Raw:
        return Raw(**basic_sample_keys(crude), members=_members(crude))

    class Encoder(DefaultTaskEncoder[Any, Any, Any, Any]):
        decoder = None
        cookers = (Cooker(cook),)

        def batch(self, samples: list[Any]) -> list[Any]:
            return samples

        def encode_batch(self, batch: Any) -> Any:
            return batch

    here = WorkerConfig(rank=0, world_size=1, num_workers=0)
    dataset = get_val_dataset(folder, split_part="train", worker_config=here, batch_size=1, task_encoder=Encoder())
    for batch in get_loader(dataset):
        for sample in batch:
            yield sample.__key__, sample.members


def with_datasets(folder: Path, *, streaming: bool = False) -> Delivered:
    """Reads with the builder `webdataset` of Hugging Face datasets, images left as they are stored."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    files = [str(tar) for tar in sorted(folder.glob("*.tar"))]
    table = datasets.load_dataset(
        "webdataset", data_files={"train": files}, split="train", cache_dir=str(folder / "cache"), streaming=streaming
    )
    images = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    for name in images:
        table = table.cast_column(name, datasets.Image(decode=False))
    for row in table:
        members = _members(row)
        yield row["__key__"], {name: members[name]["bytes"] if name in images else members[name] for name in members}


def _members(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {name: content for name, content in sample.items() if not name.startswith("__")}


READERS: Mapping[str, Callable[[Path], Delivered]] = {
    "webdataset": with_webdataset,
    "energon": with_energon,
    "datasets": with_datasets,
    "datasets, streaming": partial(with_datasets, streaming=True),
}

if __name__ == "__main__":
    main()
