"""Order, index and worker processes together: the batches of a step, resumable from one integer.

A sample that cannot be used (its tar is damaged there, or `collate` refuses it) is replaced by a stand-in that the
order names, so that the ranks stay even and any number of them sees the same samples. Each one is told as a `Loss`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from orchestrator.data.order import Draw, Order, share
from orchestrator.data.packing import PackingPlan
from orchestrator.data.pool import MOST_PREFETCH, Workers, computed
from orchestrator.data.reader import ShardSet
from orchestrator.data.remote import Remote
from orchestrator.data.rules import OrderRules
from orchestrator.errors import DamagedArtifact, DamagedSample, InputError
from orchestrator.records import record

Batch = TypeVar("Batch")

_PLAIN = OrderRules()
_MOST_STAND_INS = 32  # for one draw: with half of a source damaged, one draw in eight billion finds none


class Drawn(NamedTuple):
    """One sample as it was drawn for a step."""

    source: str  # the name of the input it came from; where steps take turns, equal for all samples of one
    key: str
    members: Mapping[str, bytes]  # extension -> content
    seed: int  # for augmentation and choice of wording: a function of (seed, source, epoch, index), never of the rank
    place: int  # in the global batch; with packing, the samples of one packed sequence share a place


@record
class Loss:
    """A sample that could not be used at its turn."""

    source: str
    number: int  # within its source
    tar: str
    key: str  # empty where even the key is lost
    reason: str
    stands_in: bool  # it was to replace another lost one


class SampleStream:
    """One rank's batches of a mixture of shards. The step is the only state: nothing is saved, nothing replayed."""

    def __init__(  # noqa: PLR0913  everything by name
        self,
        shards: Mapping[str, Path],
        *,
        weights: Mapping[str, float],
        rules: OrderRules = _PLAIN,
        plans: Mapping[str, PackingPlan] | None = None,
        seed: int,
        global_batch: int,
        micro_batch: int,
        world_rank: int,
        world_size: int,
        workers: int = 0,
        prefetch: int = 2,
        worker_timeout_s: float = 45.0,
        remote: Remote | None = None,
    ) -> None:
        """Opens the sources. `weights` are shares of the turns, empty = equal; `workers` are processes of this rank.

        `rules` say how sources and samples take turns; where they pack, each source has its plan.

        Each worker computes up to `prefetch` micro-batches ahead, and is replaced when it is silent for too long.
        """
        if workers < 0:
            raise InputError(f"workers must be 0 or more, not {workers}")
        if not 1 <= prefetch <= MOST_PREFETCH:
            raise InputError(f"prefetch must be from 1 to {MOST_PREFETCH}, not {prefetch}")
        if worker_timeout_s <= 0:
            raise InputError(f"worker_timeout_s must be above 0, not {worker_timeout_s}")
        self._sets = {name: ShardSet(path, remote=remote) for name, path in shards.items()}
        self.order = Order(seed, self.samples, weights, global_batch, rules, plans)
        self._parts = share(world_rank, world_size, micro_batch, global_batch)
        self._workers = Workers(number=workers, prefetch=prefetch, timeout_s=worker_timeout_s)
        self._losses: list[Loss] = []

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
        return self.order.source_of(step)

    def batches(self, collate: Callable[[Sequence[Drawn]], Batch], *, start_step: int, steps: int) -> Iterator[Batch]:
        """Yields this rank's batches of the steps start_step .. start_step+steps-1: `accumulation` each, in order.

        `collate` runs in the worker processes, if there are any.
        """
        if start_step < 0 or steps < 0:
            raise InputError(f"start_step and steps must be 0 or more, not {start_step} and {steps}")
        batches = _MicroBatches(self._sets, self.order, self._parts, collate, start_step)
        count = steps * self.accumulation
        try:
            for made in computed(batches.make, count, self._workers, name_of=batches.name):
                self._losses += made.losses
                yield made.batch
        finally:
            for shards in self._sets.values():
                shards.close()

    def take_losses(self) -> list[Loss]:
        """Returns what was lost from the batches since it was last asked."""
        taken, self._losses = self._losses, []
        return taken

    def names_of(self, step: int) -> list[str]:
        """Names the samples this rank drew for a step, counted from 1, by reading them again."""
        return [self._name(draw) for part in self._parts for draw in self.order.samples_of(step - 1, part)]

    def _name(self, draw: Draw) -> str:
        shards = self._sets[draw.source]
        try:
            key, _ = shards.read(draw.number)
        except DamagedSample as error:  # another one stood in for it
            key = f"{error.key or draw.number} (damaged)"
        return f"{draw.source}: {shards.tar(draw.number)}: {key}"

    def drawn_before(self, step: int) -> int:
        """Counts the samples that all ranks together draw before a step; with packing, as many as a mean pack has."""
        return sum(self.order.drawn_before(step).values())


class _Refused(DamagedSample):
    """A sample that collate does not take."""

    def __init__(self, tar: str, key: str, error: InputError) -> None:
        self.error = error
        super().__init__(tar, key, str(error))


@record
class _Made(Generic[Batch]):
    """A micro-batch, and what was lost on the way to it."""

    batch: Batch
    losses: tuple[Loss, ...]


class _MicroBatches(Generic[Batch]):
    """The micro-batches of one rank: each a pure function of its number."""

    def __init__(
        self,
        sets: Mapping[str, ShardSet],
        order: Order,
        parts: Sequence[range],
        collate: Callable[[Sequence[Drawn]], Batch],
        start_step: int,
    ) -> None:
        self._sets = sets
        self._order = order
        self._parts = parts
        self._collate = collate
        self._start_step = start_step

    def make(self, number: int) -> _Made[Batch]:
        """Reads and collates a micro-batch, with stand-ins for what is lost."""
        draws = self._draws(number)
        losses: list[Loss] = []
        drawn = [self._usable(draw, losses, tried=False) for draw in draws]
        try:
            batch = self._collated(drawn)
        except InputError:  # at least one of them is no sample for it: which ones, it says when asked one by one
            losses.clear()
            drawn = [self._usable(draw, losses, tried=True) for draw in draws]
            batch = self._collated(drawn)
        return _Made(batch=batch, losses=tuple(losses))

    def name(self, number: int) -> str:
        """Names the samples of a micro-batch, without reading them."""
        samples = (f"{draw.source} {draw.number} in {self._tar(draw)}" for draw in self._draws(number))
        return f"step {self._start_step + number // len(self._parts)}: {', '.join(samples)}"

    def _draws(self, number: int) -> list[Draw]:
        step, micro = divmod(number, len(self._parts))
        return self._order.samples_of(self._start_step + step, self._parts[micro])

    def _usable(self, draw: Draw, losses: list[Loss], *, tried: bool) -> Drawn:
        """Reads a sample, or else the first stand-in that is whole; `tried` asks collate about each one alone."""
        try:
            return self._read(draw, tried=tried)
        except DamagedSample as error:
            first = error
            losses.append(_loss(draw, error, stands_in=False))
        stand_ins = min(_MOST_STAND_INS, len(self._sets[draw.source]) - 1)
        for attempt in range(1, 1 + stand_ins):
            candidate = self._order.substitute(draw, attempt)
            try:
                return self._read(candidate, tried=tried)
            except DamagedSample as error:
                losses.append(_loss(candidate, error, stands_in=True))
        if isinstance(first, _Refused):  # collate refuses whatever it gets: no damage, but a wrong set-up
            raise first.error
        raise DamagedArtifact(
            f"{draw.source}: a sample and {stand_ins} stand-ins for it are all lost; the first: {first}"
        )

    def _read(self, draw: Draw, *, tried: bool) -> Drawn:
        source, _, number, seed, place = draw
        key, members = self._sets[source].read(number)
        sample = Drawn(source, key, members, seed, place)
        if tried:
            self._try(sample, draw)
        return sample

    def _try(self, sample: Drawn, draw: Draw) -> None:
        try:
            self._collated([sample])
        except InputError as error:
            raise _Refused(self._tar(draw), sample.key, error) from error

    def _tar(self, draw: Draw) -> str:
        return self._sets[draw.source].tar(draw.number)

    def _collated(self, drawn: list[Drawn]) -> Batch:
        try:
            return self._collate(drawn)
        except Exception as error:
            sources = " and ".join(sorted({sample.source for sample in drawn}))
            error.add_note(f"while collating {sources}: {', '.join(sample.key for sample in drawn)}")
            raise


def _loss(draw: Draw, error: DamagedSample, *, stands_in: bool) -> Loss:
    return Loss(
        source=draw.source, number=draw.number, tar=error.tar, key=error.key, reason=error.reason, stands_in=stands_in
    )
