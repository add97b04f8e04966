"""One rank's share of a conversion: it reads every record's place, and its children convert the chunks that are its."""

import importlib
import os
import platform
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice

from orchestrator.children import Children
from orchestrator.errors import InputError, Preempted
from orchestrator.stage import StageContext
from orchestrator.world import World
from stages.convert.chunks import Chunk, Chunks
from stages.convert.parts import Part
from stages.convert.raw import Attempt, Notes, RawPart

_MEET_EVERY_S = 0.5


class Share:
    """Chunk n is converted by rank n % world.size, in a child process of its own.

    Every rank reads the annotation files, and no image of a record that is not its. Ranks meet every half second, to
    add up their progress and to stop together; so none waits for another longer than that, whatever its share takes.
    """

    def __init__(
        self, chunks: Chunks, notes: Notes, raws: list[RawPart], processes: int, context: StageContext
    ) -> None:
        """Prepares the work; `notes` are those that the records' `build` write to."""
        self._chunks = chunks
        self._notes = notes
        self._raws = raws
        self._context = context
        self._children = Children(processes)
        self._done: dict[str, tuple[int, int]] = {}  # chunk -> its records done and its things left out
        self._next_meeting_s = 0.0
        self._limit = sys.maxsize

    def convert(self, attempts: Iterator[tuple[Part, Attempt]], size: int, limit: int | None = None) -> int:
        """Converts what is not finished of the first `limit` records, `size` a chunk; returns how many there are.

        Collective: every rank must call.
        """
        _load_early()
        self._limit = sys.maxsize if limit is None else limit
        world, records, held = self._context.world, 0, list[tuple[Part, Attempt]]()
        try:
            self._meet(finished=False)
            for records, one in enumerate(islice(attempts, limit), start=1):
                if (number := (records - 1) // size) % world.size == world.rank:
                    held.append(one)
                if records % size == 0 and held:
                    self._begin(Chunk(number=number, attempts=held))
                    held = []
                self._listen(0.0)
            if held:
                self._begin(Chunk(number=records // size, attempts=held))
            while len(self._children):
                self._listen(_MEET_EVERY_S)
            while not self._meet(finished=True):
                pass
        finally:
            self._children.kill()
        if len(read := set(world.gather(records))) > 1:
            raise InputError(f"ranks read different numbers of records, {sorted(read)}: a file changed meanwhile")
        return records

    def _begin(self, chunk: Chunk) -> None:
        name = f"chunk {chunk.number} ({chunk.attempts[0][1].name} to {chunk.attempts[-1][1].name})"
        if (receipt := self._chunks.receipt(chunk.number)) is not None and receipt.records == len(chunk.attempts):
            self._done[name] = (receipt.records, len(receipt.skipped))
            return
        while self._children.busy():
            self._listen(_MEET_EVERY_S)
        self._children.start(name, partial(self._chunks.convert, chunk, self._notes))

    def _listen(self, timeout_s: float) -> None:
        """Waits for the children, at most until the ranks meet again."""
        until_meeting_s = self._next_meeting_s - time.monotonic()
        if timeout_s > 0:
            self._done |= self._children.listen(min(timeout_s, max(until_meeting_s, 0.0)))
        if until_meeting_s <= 0:
            self._done |= self._children.listen(0.0)
            self._meet(finished=False)

    def _meet(self, *, finished: bool) -> bool:
        """Adds up the progress of all ranks, stops if one was asked to; tells whether all have finished.

        Collective: every rank must call.
        """
        self._next_meeting_s = time.monotonic() + _MEET_EVERY_S
        done, skipped = (sum(counted) for counted in zip((0, 0), *self._done.values(), strict=True))
        about = min(sum(raw.about for raw in self._raws), self._limit)
        told = self._context.world.gather((done, skipped, about, finished, self._context.stop()))
        dones, skips, abouts, finishes, stops = zip(*told, strict=True)
        total = sum(dones) if all(finishes) else max(*abouts, sum(dones) + 1)
        self._context.progress.advance(sum(dones), total, "record", skipped=sum(skips))
        if any(stops):
            raise Preempted(
                f"asked to stop after {sum(dones)} records: finished tars are kept, the next attempt goes on"
            )
        return all(finishes)


def _load_early() -> None:
    """Loads what every child would otherwise load for itself, which takes longer than a hundred small images."""
    from PIL import Image

    Image.preinit()
    importlib.import_module("numpy.ma")


def cores_of(world: World) -> int:
    """Returns how many cores this rank may keep busy: those it is bound to, divided by the ranks that share them.

    Collective: every rank must call.
    """
    mine = (platform.node(), tuple(sorted(os.sched_getaffinity(0))))
    return max(1, len(mine[1]) // world.gather(mine).count(mine))
