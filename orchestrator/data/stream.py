"""Order, index and worker processes together: the batches of a step, resumable from one integer."""

import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from orchestrator.data.order import Order, share
from orchestrator.data.reader import ShardSet
from orchestrator.errors import InputError, OrchError
from orchestrator.records import record

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

Batch = TypeVar("Batch")

_NOT_FOR_WORKERS = (signal.SIGUSR2, signal.SIGINT)  # preemption and Ctrl-C are the trainer's to answer


@record
class Drawn:
    """One sample as it was drawn for a step."""

    source: str  # the name of the input it came from: equal for all samples of a step, on all ranks
    key: str
    members: Mapping[str, bytes]  # extension -> content
    seed: int  # for augmentation and choice of wording: a function of (seed, source, epoch, index), never of the rank


class SampleStream:
    """One rank's batches of a mixture of shards. The step is the only state: nothing is saved, nothing replayed."""

    def __init__(
        self,
        shards: Mapping[str, Path],
        *,
        weights: Mapping[str, float],
        seed: int,
        global_batch: int,
        micro_batch: int,
        world_rank: int,
        world_size: int,
        workers: int = 0,
    ) -> None:
        """Opens the sources. `weights` are shares of the steps, empty = equal; `workers` are processes of this rank."""
        if workers < 0:
            raise InputError(f"workers must be 0 or more, not {workers}")
        self._sets = {name: ShardSet(path) for name, path in shards.items()}
        self._order = Order(seed, self.samples, weights, global_batch)
        self._parts = share(world_rank, world_size, micro_batch, global_batch)
        self._workers = workers

    @property
    def samples(self) -> dict[str, int]:
        """Counts the samples of each source."""
        return {name: len(shards) for name, shards in self._sets.items()}

    @property
    def accumulation(self) -> int:
        """Counts the micro-batches of a step."""
        return len(self._parts)

    def source_of(self, step: int) -> str:
        """Tells which source a step draws from, the same on all ranks."""
        return self._order.source_of(step)

    def batches(self, collate: Callable[[Sequence[Drawn]], Batch], *, start_step: int, steps: int) -> Iterator[Batch]:
        """Yields this rank's batches of the steps start_step .. start_step+steps-1: `accumulation` each, in order.

        `collate` runs in the worker processes, if there are any.
        """
        if start_step < 0 or steps < 0:
            raise InputError(f"start_step and steps must be 0 or more, not {start_step} and {steps}")
        batches = _MicroBatches(self._sets, self._order, self._parts, collate, start_step, steps)
        loader = _loader(batches, self._workers)
        with _held_back(_NOT_FOR_WORKERS):  # until each worker has said that it ignores them
            iterator = iter(loader)
        try:
            for batch in iterator:
                if isinstance(batch, _Failed):
                    raise batch.error
                yield batch
        finally:
            del iterator  # ends the workers now, and not when the last traceback that knows of them is forgotten


@record
class _Failed:
    """An error on its way to the trainer: torch would bury its message under a worker's traceback."""

    error: Exception


class _MicroBatches(Generic[Batch]):
    """The micro-batches of one rank, by number: what torch calls a map-style data set."""

    def __init__(
        self,
        sets: Mapping[str, ShardSet],
        order: Order,
        parts: Sequence[range],
        collate: Callable[[Sequence[Drawn]], Batch],
        start_step: int,
        steps: int,
    ) -> None:
        self._sets = sets
        self._order = order
        self._parts = parts
        self._collate = collate
        self._start_step = start_step
        self._steps = steps

    def __len__(self) -> int:
        return self._steps * len(self._parts)

    def __getitem__(self, number: int) -> Batch | _Failed:
        step, micro = divmod(number, len(self._parts))
        try:
            return self._collated(self._drawn(self._start_step + step, self._parts[micro]))
        except Exception as error:  # noqa: BLE001  # raised again in the trainer
            return _Failed(error=_portable(error) if _in_worker() else error)

    def _drawn(self, step: int, part: range) -> list[Drawn]:
        found = []
        for draw in self._order.samples_of(step, part):
            key, members = self._sets[draw.source].read(draw.number)
            found.append(Drawn(source=draw.source, key=key, members=members, seed=draw.seed))
        return found

    def _collated(self, drawn: list[Drawn]) -> Batch:
        try:
            return self._collate(drawn)
        except Exception as error:
            error.add_note(f"while collating {drawn[0].source}: {', '.join(sample.key for sample in drawn)}")
            raise


def _in_worker() -> bool:
    from torch.utils.data import get_worker_info

    return get_worker_info() is not None


def _portable(error: Exception) -> Exception:
    """Prepares an error for the way to another process, where its traceback does not go."""
    if not isinstance(error, OrchError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # our own, made in this line
    except Exception:  # noqa: BLE001  # whatever an exception's own class does to stay here
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


def _loader(batches: _MicroBatches[Any], workers: int) -> "DataLoader[Any]":
    import torch
    from torch.utils.data import DataLoader

    return DataLoader(
        batches,  # type: ignore[arg-type]  # torch asks for a subclass of its Dataset, but uses these two methods only
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_begin_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own: an iterator draws from it at its start, which must not be the trainer's
    )


def _begin_worker(_: int) -> None:
    """Makes a worker deaf to the signals that are the trainer's to answer."""
    for number in _NOT_FOR_WORKERS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _NOT_FOR_WORKERS)


@contextmanager
def _held_back(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Keeps signals waiting, here and in every process that is started meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
