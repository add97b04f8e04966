"""A process that must not outlive the one that started it."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # found now: a freshly forked process had better not look for libraries


def die_with(parent: int) -> None:
    """Asks the kernel to kill this process when its parent `parent` dies, however it dies (Linux).

    To the kernel the parent is the thread that started us, so that must be one that lasts.
    """
    if sys.platform != "linux":
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
