"""mosaicml-streaming, as its manual shows: converted to MDS, StreamingDataset and StreamingDataLoader.

It imports two names of torchvision for classes that nobody uses here. torchvision comes built for CUDA and does not
load beside a torch without it, so two empty names stand in for it.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers  # noqa: F401  # looks for torchvision when it is imported: before anything stands in for it
import webdataset

from benchmarks.streaming.programs.serve import BATCH, Library, Order, serve
from benchmarks.streaming.programs.work import Done, Pair, raw

for _name, _value in (("datasets.VisionDataset", object), ("transforms.functional.to_tensor", None)):
    _path, _, _attribute = f"torchvision.{_name}".rpartition(".")
    _parts = _path.split(".")
    for _end in range(1, len(_parts) + 1):
        sys.modules.setdefault(".".join(_parts[:_end]), ModuleType(".".join(_parts[:_end])))
    setattr(sys.modules[_path], _attribute, _value)

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset  # noqa: E402  # after what stands in
from streaming.base.util import clean_stale_shared_memory  # noqa: E402


class Mosaic:
    """Reads MDS."""

    def prepare(self, tars: Sequence[str], folder: str) -> None:
        """Converts the samples."""
        self._path = Path(folder) / "mds"
        with MDSWriter(out=str(self._path), columns={"jpg": "bytes", "json": "bytes"}) as writer:
            for sample in webdataset.WebDataset(list(tars), shardshuffle=False):
                writer.write({"jpg": sample["jpg"], "json": sample["json"]})

    def batches(self, *, order: Order, workers: int, collate: Callable[[Sequence[Pair]], Done]) -> Iterable[Done]:
        """Reads one epoch."""
        return (batch["done"] for batch in self._loader(collate, shuffled=order != "none", workers=workers))

    def resume_at(self, sample: int) -> Callable[[], int]:
        """Goes there once and saves its state."""
        loader = self._loader(raw, shuffled=True, workers=0)
        batches = iter(loader)
        for _ in range(sample // BATCH):
            next(batches)
        state = loader.state_dict()

        def go_on() -> int:
            again = self._loader(raw, shuffled=True, workers=0)
            again.load_state_dict(state)
            return int(next(iter(again))["done"].samples)

        return go_on

    def _loader(self, work: Callable[[Sequence[Pair]], Done], *, shuffled: bool, workers: int) -> Any:
        clean_stale_shared_memory()
        dataset = StreamingDataset(local=str(self._path), batch_size=BATCH, shuffle=shuffled, num_canonical_nodes=1)
        return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=_Collate(work))


class _Collate:
    def __init__(self, work: Callable[[Sequence[Pair]], Done]) -> None:
        self._work = work

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        done = self._work([(sample["jpg"], sample["json"]) for sample in samples])
        return {"counted": [0] * len(samples), "done": done}  # its loader counts samples by the first value's length


if __name__ == "__main__":
    library: Library = Mosaic()
    serve(library)
