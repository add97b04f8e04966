"""Who works on a run: one process at a time, known by name to everybody it keeps waiting."""

import contextlib
import errno
import fcntl
import getpass
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import RunBusy, SurroundingsError
from orchestrator.redaction import hide

LOCK = "lock"


class RunLock:
    """Holds a run for this process, and for every process that inherits the file descriptor, until all closed it.

    The kernel decides (flock), not the content: what a dead holder wrote counts for nothing. The supervisor inherits
    the lock: `Popen(..., pass_fds=(lock.fileno(),))`, then `RunLock.adopt(directory, fileno, command)` there and
    `close()` in the launcher: the run is never without a holder.
    """

    def __init__(self, directory: Path, fileno: int, command: str) -> None:
        """Names this process as the holder; use `take` or `adopt`."""
        self._directory = directory
        self._fileno: int | None = fileno
        self._describe(command)

    @classmethod
    def take(cls, directory: Path, command: str) -> Self:
        """Takes the run in an existing folder, or raises RunBusy naming the holder."""
        try:
            fileno = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise SurroundingsError(f"{directory / LOCK} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(fileno, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return cls(directory, fileno, command)
        except BlockingIOError:
            os.close(fileno)
            raise RunBusy(busy(directory)) from None
        except OSError as error:
            os.close(fileno)
            reason = "the file system has no locks" if error.errno == errno.ENOLCK else error.strerror
            raise SurroundingsError(f"{directory / LOCK} cannot be locked: {reason}") from error

    @classmethod
    def adopt(cls, directory: Path, fileno: int, command: str) -> Self:
        """Takes over a lock whose descriptor was inherited, and names this process as the holder."""
        os.set_inheritable(fileno, False)
        return cls(directory, fileno, command)

    def fileno(self) -> int:
        """Returns the descriptor that holds the lock."""
        if self._fileno is None:
            raise ValueError("the lock is closed")
        return self._fileno

    def close(self) -> None:
        """Lets go; the run is free once every inherited descriptor is closed too."""
        if self._fileno is not None:
            os.close(self._fileno)  # never LOCK_UN: that would take it from whoever inherited it
            self._fileno = None

    def __enter__(self) -> Self:
        """Holds the run for the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Lets go."""
        self.close()

    def _describe(self, command: str) -> None:
        # in place, not by rename: the lock is on this file, a new one would be free
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "user": user_name(),
            "started": time.time(),
            "command": hide(command),
        }
        content = json.dumps(holder, ensure_ascii=False).encode()
        with contextlib.suppress(OSError):  # a full disk leaves a lock without a name, which is still a lock
            os.ftruncate(self.fileno(), 0)
            os.pwrite(self.fileno(), content, 0)


def holder_of(directory: Path) -> dict[str, Any] | None:
    """Returns who holds a run now ({pid, host, user, started, command}; empty if it has no name yet), or None."""
    try:
        fileno = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fileno, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _named(directory)
    except OSError:
        return None
    finally:
        os.close(fileno)
    return None


def _named(directory: Path) -> dict[str, Any]:
    try:
        holder = json.loads((directory / LOCK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def busy(directory: Path) -> str:
    """Says who holds a run, to whoever must wait for it."""
    holder = _named(directory)
    if not holder:
        return f"{directory} is being worked on by another process, which has not said its name yet"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("started", 0)))
    return (
        f"{directory} is being worked on by process {holder.get('pid')} on {holder.get('host')}, started by "
        f"{holder.get('user')} at {since}: {holder.get('command')}"
    )


def user_name() -> str:
    """Returns the name of the user who runs this process, or a number where it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run us under a number that has no name
        return str(os.getuid())
