"""Answers requests, one line of JSON each: a library does what it is asked, and says how long it took.

The process stays between requests, so that no measurement pays for imports. Only the standard library is imported here:
the module runs in the peers' environment as well as in ours.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, Protocol

from benchmarks.streaming.programs.work import Decoder, Done, Pair, decode, pillow_pixels, raw, turbo_pixels

BATCH = 64
Work = Callable[[Sequence[Pair]], Done]
Order = Literal["none", "blocks", "full"]  # who shuffles in one way only does that for both of the last


class Library(Protocol):
    """A library that delivers samples."""

    def prepare(self, tars: Sequence[str], folder: str) -> None:
        """Gets ready to read these tars: whatever must be done once for a data set. Not timed."""

    def batches(self, *, order: Order, workers: int, collate: Callable[[Sequence[Pair]], Done]) -> Iterable[Done]:
        """Delivers every sample once, in batches that `collate` has worked on; in the workers if there are any."""

    def resume_at(self, sample: int) -> Callable[[], int]:
        """Gets ready to go on after this many samples (not timed), and returns what does it.

        That opens the data anew, waits for the first batch and returns how many samples were in it.
        """


def serve(library: Library, pixels_of: Decoder = pillow_pixels) -> None:
    """Answers until there are no more requests. `pixels_of` is how this library decodes images."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not mix with answers
    for line in sys.stdin:
        try:
            answer = _answer(library, pixels_of, json.loads(line))
        except Exception as error:  # noqa: BLE001  # whatever a library raises is what it cannot do
            answer = {"cannot": f"{type(error).__name__}: {error}"[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(library: Library, pixels_of: Decoder, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "prepare":
        library.prepare(request["tars"], request["folder"])
        return {"seconds": 0.0}
    if request["do"] == "read":
        decoder = turbo_pixels if request["work"] == "decode by libjpeg-turbo" else pixels_of
        work = raw if request["work"] == "raw" else partial(decode, pixels_of=decoder)
        return _read(library, work, order=request["order"], workers=request["workers"])
    go_on = library.resume_at(request["sample"])
    start = time.perf_counter()
    samples = go_on()
    return {"seconds": time.perf_counter() - start, "samples": samples}


def _read(library: Library, work: Work, *, order: Order, workers: int) -> dict[str, Any]:
    """Reads an epoch. With workers the clock starts at the first batch: how long a process needs to start is not it."""
    samples = size = before = 0
    start = time.perf_counter()
    for done in library.batches(order=order, workers=workers, collate=work):
        if workers and not samples:
            start, before = time.perf_counter(), done.samples
        samples += done.samples
        size += done.bytes
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "samples": samples, "timed": samples - before, "bytes": size}
