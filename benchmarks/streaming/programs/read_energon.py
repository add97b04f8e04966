"""Megatron-Energon, as its manual shows: `energon prepare`, raw samples cooked by the task encoder, savable loaders."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    get_loader,
    get_savable_loader,
    get_train_dataset,
    get_val_dataset,
    stateless,
)  # fmt: skip

from benchmarks.streaming.programs.serve import BATCH, Library, Order, serve
from benchmarks.streaming.programs.work import Done, Pair, raw

_PREPARE = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", "--no-progress"]
_BUFFER, _SEQUENCE = 1000, 100  # of shuffling, as its manual shows


@dataclass
class Content(Sample):  # type: ignore[misc]  # energon has no types for mypy
    """A sample as it is stored."""

    pair: Pair


@stateless  # type: ignore[untyped-decorator]  # the same
def cook(crude: dict[str, Any]) -> Content:
    """Takes the two members."""
    return Content(**basic_sample_keys(crude), pair=(crude["jpg"], crude["json"]))


class Encoder(DefaultTaskEncoder[Any, Any, Any, Any]):  # type: ignore[misc]  # the same
    """Leaves samples as they are, works on batches."""

    decoder = None
    cookers = (Cooker(cook),)

    def __init__(self, work: Callable[[Sequence[Pair]], Done]) -> None:
        """Will call `work` once a batch."""
        super().__init__()
        self._work = work

    def batch(self, samples: list[Content]) -> Done:
        """Works on a batch, in the worker if there is one."""
        return self._work([sample.pair for sample in samples])

    def encode_batch(self, batch: Done) -> Done:
        """Adds nothing."""
        return batch


class Energon:
    """Reads tars after `energon prepare`."""

    def prepare(self, tars: Sequence[str], folder: str) -> None:  # noqa: ARG002  # it writes beside the tars
        """Runs `energon prepare`."""
        self._path = Path(tars[0]).parent
        program = Path(sys.executable).parent / "energon"
        subprocess.run([str(program), "prepare", str(self._path), *_PREPARE], check=True, stdout=sys.stderr)

    def batches(self, *, order: Order, workers: int, collate: Callable[[Sequence[Pair]], Done]) -> Iterable[Done]:
        """Reads one epoch."""
        batches: Iterable[Done] = get_loader(self._dataset(collate, shuffled=order != "none", workers=workers))
        return batches

    def resume_at(self, sample: int) -> Callable[[], int]:
        """Goes there once and saves its state."""
        loader = get_savable_loader(self._dataset(raw, shuffled=True, workers=0))
        batches = iter(loader)
        for _ in range(sample // BATCH):
            next(batches)
        state = loader.save_state_rank()

        def go_on() -> int:
            again = get_savable_loader(self._dataset(raw, shuffled=True, workers=0))
            again.restore_state_rank(state)
            return int(next(iter(again)).samples)

        return go_on

    def _dataset(self, work: Callable[[Sequence[Pair]], Done], *, shuffled: bool, workers: int) -> Any:
        here = WorkerConfig(rank=0, world_size=1, num_workers=workers)
        encoder = Encoder(work)
        if not shuffled:
            return get_val_dataset(
                self._path, split_part="train", worker_config=here, batch_size=BATCH, task_encoder=encoder
            )
        return get_train_dataset(
            self._path, worker_config=here, batch_size=BATCH, shuffle_buffer_size=_BUFFER,
            max_samples_per_sequence=_SEQUENCE, repeat=False, task_encoder=encoder,
        )  # fmt: skip


if __name__ == "__main__":
    library: Library = Energon()
    serve(library)
