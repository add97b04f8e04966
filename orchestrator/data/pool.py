"""Computes results by number in worker processes and hands them out in order, whatever becomes of a worker.

A result is a pure function of its number. So a worker that died or hangs is killed and replaced, and what it owed is
computed again: nothing is lost, nothing comes twice. Workers are forked, so that one is there within milliseconds; they
die with the process that started them. Numbers go out and results come back over a socket pair each, results as
parcels (see `parcel.py` and, for the worker's side, `poolwork.py`). A worker is owed for at most `prefetch` results:
computed and waiting, or still to come.
"""

import logging
import os
import signal
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import wait
from typing import Generic, NamedTuple, TypeVar

from orchestrator.causes import cause_of_exit, kernel_oom_kills
from orchestrator.data.poolwork import ASKED, DONE, NEW_FILE, NOT_FOR_WORKERS, work
from orchestrator.errors import SurroundingsError, WorkersLost
from orchestrator.records import record

log = logging.getLogger(__name__)

Result = TypeVar("Result")

MOST_PREFETCH = 64  # as many numbers wait in a socket at once
_CHANCES = 3  # workers that one number may cost before it is held for the cause
_LOOK_EVERY_S = 0.5  # for workers that died without closing their socket: a process of theirs may hold it
_DYING_S = 5.0  # a process that waits for a disk that does not answer cannot even be killed: it is left behind
_UNHEARD = 255 << 8  # exit code 255, as `waitpid` gives it
_IN_USE = 2  # results that the trainer holds at a time: the one at work, and the one before until it is dropped


@record
class Workers:
    """How many processes compute, how far ahead, and how long one may be silent."""

    number: int  # 0 = the calling process computes by itself
    prefetch: int = 2  # results a worker, MOST_PREFETCH at the most
    timeout_s: float = 120.0  # without a result while one is asked for


def computed(
    compute: Callable[[int], Result], count: int, workers: Workers, *, name_of: Callable[[int], str]
) -> Iterator[Result]:
    """Yields compute(0), compute(1) .. compute(count - 1); what one of them raises, in its turn.

    `name_of` tells what a number stands for, when it has cost too many workers.
    """
    if workers.number == 0 or count == 0:
        yield from map(compute, range(count))
        return
    pool = _Pool(compute, count, workers, name_of)
    try:
        pool.start()
        for number in range(count):
            yield pool.result(number)
    finally:
        pool.close()


class _Done(NamedTuple):
    """A result, packed."""

    parcel: int
    when_gone: Callable[[], object] | None  # to be called when nothing uses the file any more, if it is used again


class _Worker:
    """A process that computes, as the trainer sees it."""

    def __init__(self, pid: int, line: socket.socket, files: int) -> None:
        self.pid = pid
        self.line = line
        self.asked: dict[int, int] = {}  # number -> file to write it into; it computes them in this order
        self.done: dict[int, _Done] = {}  # number -> result, until its turn comes
        self._files = list(range(files))  # of the worker's, that nobody uses
        self.heard_s = time.monotonic()
        self._ended = False  # its process id may be another's by now

    def ask(self, number: int) -> None:
        if not self.asked:
            self.heard_s = time.monotonic()
        # the trainer may hold any number of results: those above the usual get files of their own, and are copied
        file = self.asked[number] = self._files.pop() if self._files else NEW_FILE
        with suppress(ConnectionError):  # it is dead; whoever looks after the workers will see
            self.line.send(ASKED.pack(number, file))

    def receive(self) -> None:
        """Takes in the results that are there."""
        while True:
            try:
                message, parcels, _, _ = socket.recv_fds(self.line, DONE.size, 1, socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, ConnectionError):
                return
            if not message:
                return
            if not parcels:
                raise SurroundingsError("a batch could not be received: too many files are open (see ulimit -n)")
            (number,) = DONE.unpack(message)
            file = self.asked.pop(number)
            when_gone = None if file == NEW_FILE else partial(self._files.append, file)
            self.done[number] = _Done(parcels[0], when_gone)
            self.heard_s = time.monotonic()

    def exit_status(self) -> int | None:
        """Tells how it ended, a signal as a negative number; None while it runs."""
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:  # somebody here ignores SIGCHLD, or waits for any child
            pid, status = self.pid, _UNHEARD
        self._ended = pid != 0
        return os.waitstatus_to_exitcode(status) if self._ended else None

    def end(self) -> None:
        """Kills it if it lives, which costs nothing as it holds only copies, and takes in what it has sent."""
        if self.line.fileno() < 0:
            return
        if not self._ended and self.exit_status() is None:
            with suppress(ProcessLookupError):  # it went in this moment, and nobody waits for it: SIGCHLD is ignored
                os.kill(self.pid, signal.SIGKILL)
        latest = time.monotonic() + _DYING_S
        while not self._ended and self.exit_status() is None and time.monotonic() < latest:
            time.sleep(0.001)
        self.receive()
        self.line.close()


class _Pool(Generic[Result]):
    """The workers, and who owes which result."""

    def __init__(
        self, compute: Callable[[int], Result], count: int, workers: Workers, name_of: Callable[[int], str]
    ) -> None:
        import torch

        from orchestrator.data.parcel import pack, unpack  # before forking: no worker should have to

        self._pack, self._unpack = pack, unpack
        self._compute = compute
        self._count = count
        self._settings = workers
        self._name_of = name_of
        self._pinned = torch.cuda.is_available()
        self._oom_kills = kernel_oom_kills()
        self._next = 0  # the first number that no worker was asked for
        self._ends: defaultdict[int, list[str]] = defaultdict(list)  # number -> how workers ended that computed it
        self._workers: list[_Worker] = []

    def start(self) -> None:
        """Starts the workers, and gives each as much to do as it may have."""
        for _ in range(min(self._settings.number, self._count)):
            self._workers.append(self._forked())
        self._hand_out()

    def result(self, number: int) -> Result:
        """Waits for a result, and lets the workers go on to the ones after it."""
        while (done := self._taken(number)) is None:
            wait([worker.line for worker in self._workers], timeout=_LOOK_EVERY_S)
            for worker in self._workers:
                worker.receive()
            self._look_after()
        self._ends.pop(number, None)
        self._hand_out()
        made: tuple[Result, Exception | None] = self._unpack(done.parcel, pinned=self._pinned, when_gone=done.when_gone)
        result, error = made
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Ends the workers and forgets what they have computed."""
        for worker in self._workers:
            worker.end()
            for done in worker.done.values():
                os.close(done.parcel)
        self._workers = []

    def _taken(self, number: int) -> _Done | None:
        return next((worker.done.pop(number) for worker in self._workers if number in worker.done), None)

    def _hand_out(self) -> None:
        while self._next < self._count:
            free = min(self._workers, key=lambda worker: len(worker.asked) + len(worker.done))
            if len(free.asked) + len(free.done) >= self._settings.prefetch:
                return
            free.ask(self._next)
            self._next += 1

    def _look_after(self) -> None:
        """Replaces the workers that died or hang."""
        for place, worker in enumerate(self._workers):
            status = worker.exit_status()
            silent_s = time.monotonic() - worker.heard_s
            if status is not None:
                before, self._oom_kills = self._oom_kills, kernel_oom_kills()
                how = cause_of_exit(status, oom_kills=self._oom_kills - before)[1]
            elif worker.asked and silent_s > self._settings.timeout_s:
                how = f"it gave no result for {silent_s:.0f} s (worker_timeout_s is {self._settings.timeout_s:g})"
            else:
                continue
            worker.end()
            self._replace(place, how)

    def _replace(self, place: int, how: str) -> None:
        gone = self._workers[place]
        log.warning("data worker %d is replaced: %s", gone.pid, how)
        if gone.asked:
            suspect = next(iter(gone.asked))
            self._ends[suspect].append(how)
            if len(self._ends[suspect]) == _CHANCES:
                ends = "; ".join(self._ends[suspect])
                raise WorkersLost(f"{_CHANCES} data workers were lost over {self._name_of(suspect)}: {ends}")
        new = self._forked()
        new.done = gone.done
        self._workers[place] = new
        for number in gone.asked:
            new.ask(number)

    def _forked(self) -> _Worker:
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # copies of these in a worker would keep sockets of others open, and batches in memory
        parcels = [done.parcel for worker in self._workers for done in worker.done.values()]
        not_its = [mine.fileno(), *(worker.line.fileno() for worker in self._workers), *parcels]
        parent = os.getpid()
        with _held_back(NOT_FOR_WORKERS):  # until the worker ignores them
            pid = os.fork()
            if pid == 0:
                work(self._compute, self._pack, its, [number for number in not_its if number >= 0], parent)
        its.close()
        mine.setblocking(False)
        return _Worker(pid, mine, files=self._settings.prefetch + _IN_USE)


@contextmanager
def _held_back(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Keeps signals waiting, here and in every process that is started meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
