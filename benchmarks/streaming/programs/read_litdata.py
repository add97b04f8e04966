"""LitData, as its manual shows: samples optimized into chunks, StreamingDataset and StreamingDataLoader.

Its own decoder is torchvision's, which comes built for CUDA and does not load beside a torch without it: LitData itself
cannot decode JPEGs here. It is measured with Pillow, and once more with what torchvision would bring (`turbo_pixels`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import litdata
import webdataset

from benchmarks.streaming.programs.serve import BATCH, Library, Order, serve
from benchmarks.streaming.programs.work import Done, Pair, raw


class LitData:
    """Reads LitData's chunks."""

    def prepare(self, tars: Sequence[str], folder: str) -> None:
        """Converts the samples."""
        self._path = Path(folder) / "litdata"
        litdata.optimize(fn=_samples, inputs=list(tars), output_dir=str(self._path), chunk_bytes="64MB", num_workers=1)

    def batches(self, *, order: Order, workers: int, collate: Callable[[Sequence[Pair]], Done]) -> Iterable[Done]:
        """Reads one epoch."""
        batches: Iterable[Done] = self._loader(collate, shuffled=order != "none", workers=workers)
        return batches

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
            return int(next(iter(again)).samples)

        return go_on

    def _loader(self, work: Callable[[Sequence[Pair]], Done], *, shuffled: bool, workers: int) -> Any:
        dataset = litdata.StreamingDataset(str(self._path), shuffle=shuffled, seed=0)
        return litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=_Collate(work))


def _samples(tar: str) -> Iterator[dict[str, bytes]]:
    for sample in webdataset.WebDataset([tar], shardshuffle=False):
        yield {"jpg": sample["jpg"], "json": sample["json"]}


class _Collate:
    def __init__(self, work: Callable[[Sequence[Pair]], Done]) -> None:
        self._work = work

    def __call__(self, samples: Sequence[Any]) -> Done:
        # it hands out views of mapped files, whose bytes nobody has read yet
        return self._work([(bytes(sample["jpg"]), bytes(sample["json"])) for sample in samples])


if __name__ == "__main__":
    library: Library = LitData()
    serve(library)
