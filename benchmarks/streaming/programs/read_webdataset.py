"""webdataset, as its manual shows: sequential reading, a shuffle buffer of 1,000."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import webdataset

from benchmarks.streaming.programs.serve import BATCH, Library, Order, serve
from benchmarks.streaming.programs.work import Done, Pair


class WebDataset:
    """Reads tars from their beginning to their end."""

    def prepare(self, tars: Sequence[str], folder: str) -> None:  # noqa: ARG002  # nothing is converted
        """Needs nothing but the tars."""
        self._tars = list(tars)

    def batches(self, *, order: Order, workers: int, collate: Callable[[Sequence[Pair]], Done]) -> Iterable[Done]:
        """Reads one epoch; workers share the tars."""
        samples: Any = self._samples(shuffled=order != "none")
        batched = samples.batched(BATCH, collation_fn=_Collate(collate))
        batches: Iterable[Done] = webdataset.WebLoader(batched, batch_size=None, num_workers=workers)
        return batches if workers else iter(batched)

    def resume_at(self, sample: int) -> Callable[[], int]:
        """Can only read again what was read before, and not use it; in the order of the tars, the fastest it has."""

        def go_on() -> int:
            rest: Iterator[Any] = islice(iter(self._samples(shuffled=False)), sample, sample + BATCH)
            return len(list(rest))

        return go_on

    def _samples(self, *, shuffled: bool) -> Any:
        if not shuffled:
            return webdataset.WebDataset(self._tars, shardshuffle=False)
        return webdataset.WebDataset(self._tars, shardshuffle=100, seed=0).shuffle(1000)


class _Collate:
    def __init__(self, work: Callable[[Sequence[Pair]], Done]) -> None:
        self._work = work

    def __call__(self, samples: Sequence[Any]) -> Done:
        return self._work([(sample["jpg"], sample["json"]) for sample in samples])


if __name__ == "__main__":
    library: Library = WebDataset()
    serve(library)
