"""Ours: SampleStream where a mixture is shuffled, ShardReader where tars are read from their beginning to their end."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from benchmarks.streaming.programs.serve import BATCH, Library, Order, serve
from benchmarks.streaming.programs.work import Done, Pair
from orchestrator.data.reader import ShardReader
from orchestrator.data.rules import OrderRules, ShuffleRule
from orchestrator.data.stream import Drawn, SampleStream
from stages.vision import decode_pixels


class Orch:
    """Reads shards that orch wrote."""

    def prepare(self, tars: Sequence[str], folder: str) -> None:  # noqa: ARG002  # nothing is converted
        """Has its indexes already: they were written with the tars."""
        self._tars = tars
        self._shards = Path(tars[0]).parent

    def batches(self, *, order: Order, workers: int, collate: Callable[[Sequence[Pair]], Done]) -> Iterable[Done]:
        """Reads one epoch."""
        if order == "none":
            return self._in_order(collate)
        stream = self._stream(workers, order)
        return stream.batches(_Collate(collate), start_step=0, steps=stream.samples["a"] // BATCH)

    def resume_at(self, sample: int) -> Callable[[], int]:
        """Needs to know nothing but the step."""

        def go_on() -> int:
            return len(next(iter(self._stream(0, "full").batches(_as_drawn, start_step=sample // BATCH, steps=1))))

        return go_on

    def _in_order(self, collate: Callable[[Sequence[Pair]], Done]) -> Iterator[Done]:
        for tar in self._tars:
            reader = ShardReader(tar)
            pairs = []
            for number in range(len(reader.index)):
                _, members = reader.read(number)
                pairs.append((members["jpg"], members["json"]))
                if len(pairs) == BATCH:
                    yield collate(pairs)
                    pairs = []
            if pairs:
                yield collate(pairs)
            reader.close()

    def _stream(self, workers: int, order: Literal["blocks", "full"]) -> SampleStream:
        rules = OrderRules(shuffle=ShuffleRule(mode=order))
        return SampleStream(
            {"a": self._shards}, weights={}, rules=rules, seed=0, global_batch=BATCH, micro_batch=BATCH, world_rank=0,
            world_size=1, workers=workers,
        )  # fmt: skip


class _Collate:
    """Hands the members of drawn samples to the work."""

    def __init__(self, work: Callable[[Sequence[Pair]], Done]) -> None:
        self._work = work

    def __call__(self, drawn: Sequence[Drawn]) -> Done:
        return self._work([(sample.members["jpg"], sample.members["json"]) for sample in drawn])


def _as_drawn(drawn: Sequence[Drawn]) -> Sequence[Drawn]:
    return drawn


if __name__ == "__main__":
    library: Library = Orch()
    serve(library, decode_pixels)
