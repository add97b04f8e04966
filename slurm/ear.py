"""Hears signals one after the other, when there is time for them: none is lost, and none interrupts anything."""

import os
import signal

HEARD = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR2})


def hold() -> None:
    """Keeps these signals waiting until somebody listens; programs that are started meanwhile keep them waiting too."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)


def listen(timeout_s: float) -> int | None:
    """Returns the next signal, or None when the time is over."""
    heard = signal.sigtimedwait(HEARD, max(0.0, timeout_s))
    return None if heard is None else heard.si_signo


def waits(number: int) -> bool:
    """Tells whether a signal has come that nobody has listened to yet."""
    return number in signal.sigpending()


def release() -> None:
    """Lets a forked child, about to become another program, hear signals again, all but SIGUSR2.

    Slurm sends SIGUSR2 to every process of a job step; who ignores it from the start survives, with all it starts.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)


def release_quietly() -> None:
    """Does the same for a child that may wait for the processor."""
    release()
    os.nice(10)
