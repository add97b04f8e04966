"""Runs `orch` and kills it, as kill -9 would, just before its N-th change to the world: `dying.py N RUN orch ...`.

A change is a file or folder of RUN that is made, written, renamed or removed (its copy of the code aside), or a program
that is started. With N = 0 nobody is killed, and the number of changes is the last line of the output. N.5 kills a few
milliseconds after N.
"""

import os
import signal
import sys
import threading
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SOON_S = 0.008


class Death:
    """Counts the changes, and comes when it is time."""

    def __init__(self, when: str, run: str) -> None:
        self._at, _, later = when.partition(".")
        self._later = bool(later)
        self._run = run
        self.count = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._changes(event, arguments):
            return
        self.count += 1
        if self.count != int(self._at):
            return
        if self._later:
            threading.Timer(SOON_S, die).start()
        else:
            die()

    def _changes(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "subprocess.Popen":
            return True
        if event == "open":
            return isinstance(arguments[2], int) and bool(arguments[2] & WRITES) and self._ours(arguments[0])
        return event in {"os.rename", "os.remove", "os.mkdir", "os.link", "os.symlink"} and self._ours(arguments[0])

    def _ours(self, path: object) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        name = os.fspath(path)
        return isinstance(name, str) and name.startswith(self._run) and "/.code." not in name


def die() -> None:
    """Ends this process without a chance to do anything."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    death = Death(*sys.argv[1:3])
    sys.argv[:] = sys.argv[3:]
    sys.addaudithook(death)
    from orchestrator.cli import main

    try:
        main()
    finally:
        sys.stdout.write(f"{death.count}\n")
