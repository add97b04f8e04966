"""What a worker process of a pool does: it computes what it is asked for, and sends each result as a parcel."""

import gc
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

from orchestrator.errors import OrchError
from orchestrator.lifeline import die_with

ASKED = struct.Struct("<Qq")  # a number to compute, and which of its files the worker shall write the result into
DONE = struct.Struct("<Q")  # the number; the file comes beside it
NEW_FILE = -1  # one that is not kept
# preemption, the end of the job and Ctrl-C are the trainer's to answer: until it has, it needs its batches
NOT_FOR_WORKERS = (signal.SIGUSR2, signal.SIGINT, signal.SIGTERM)


class Pack(Protocol):
    """Writes a value into a file (see `parcel.py`)."""

    def __call__(self, value: Any, into: int | None = None) -> int:
        """Returns the descriptor."""


def work(
    compute: Callable[[int], Any], pack: Pack, line: socket.socket, not_mine: Sequence[int], parent: int
) -> NoReturn:
    """Computes what it is asked for until nobody asks any more. Never returns into the trainer's code."""
    try:
        die_with(parent)
        for number in NOT_FOR_WORKERS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NOT_FOR_WORKERS)
        for file in not_mine:
            os.close(file)
        gc.freeze()  # what came from the trainer stays shared with it: a collection would write to all of it
        _serve(compute, pack, line)
    except BaseException:  # noqa: BLE001  # the exit status tells the trainer
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _serve(compute: Callable[[int], Any], pack: Pack, line: socket.socket) -> None:
    import torch

    torch.set_num_threads(1)  # its threads are the trainer's and did not come along; the workers are the parallelism
    files: dict[int, int] = {}  # by the number that the trainer has for each
    while asked := line.recv(ASKED.size):
        number, file = ASKED.unpack(asked)
        try:
            parcel = pack((compute(number), None), files.get(file))
        except Exception as error:  # noqa: BLE001  # raised again in the trainer
            parcel = pack((None, _portable(error)), files.get(file))
        socket.send_fds(line, [DONE.pack(number)], [parcel])
        if file == NEW_FILE:
            os.close(parcel)
        else:
            files[file] = parcel


def _portable(error: Exception) -> Exception:
    """Prepares an error for the way to another process, where its traceback does not go."""
    if not isinstance(error, OrchError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # our own, made in this line
    except Exception:  # noqa: BLE001  # whatever an exception's own class does to stay here
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
