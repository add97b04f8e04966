"""Why an attempt ended: from an exception, a signal or an exit code to one of the failure classes of the interface."""

import errno
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from orchestrator.errors import DamagedArtifact, Diverged, InputError, OrchError, Preempted, RecipeError

Cause = Literal[
    "preempted", "timeout", "node_failure", "out_of_memory", "hang", "communication", "bad_data", "diverged",
    "bad_config", "code_error", "disk", "cancelled", "unknown",
]  # fmt: skip

PREEMPTED_EXIT = 75  # EX_TEMPFAIL: everything is saved, start me again

DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
HANG_WORDS = ("timed out waiting", "timeout", "timed out")
PEER_WORDS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "gloo",
    "nccl",
)


def cause_of(error: BaseException) -> Cause:
    """Guesses the failure class of an exception, from itself or from what it was raised from."""
    for link in _chain(error):
        cause = _own_cause(link)
        if cause is not None:
            return cause
    return "unknown" if isinstance(error, OrchError) else "code_error"


def cause_of_exit(status: int, *, oom_kills: int) -> tuple[Cause, str]:
    """Guesses why a process ended that left no record, from its exit status (negative = signal) and the OOM kills."""
    if status == PREEMPTED_EXIT:
        return "preempted", "it was asked to stop, and saved"
    if status >= 0:
        return "unknown", f"it ended with exit code {status} and left no record"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    if -status == signal.SIGKILL and oom_kills > 0:
        return "out_of_memory", "the kernel killed it because the machine ran out of memory"
    if -status == signal.SIGKILL:
        return "unknown", "it was killed from outside (SIGKILL)"
    crashed = -status in {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}
    return ("code_error" if crashed else "unknown"), f"it died of {name}"


def kernel_oom_kills() -> int:
    """Counts the processes this kernel has killed for want of memory since it started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _own_cause(error: BaseException) -> Cause | None:
    by_class: tuple[tuple[type[BaseException], Cause], ...] = (
        (Preempted, "preempted"),
        (Diverged, "diverged"),
        (DamagedArtifact, "bad_data"),
        (RecipeError, "bad_config"),
        (InputError, "bad_config"),
        (MemoryError, "out_of_memory"),
        (ConnectionError, "communication"),
    )
    for kind, cause in by_class:
        if isinstance(error, kind):
            return cause
    if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
        return "disk"
    return _cause_in_words(error)


def _cause_in_words(error: BaseException) -> Cause | None:
    # torch is not imported here, so its classes are known by name and its RuntimeErrors by what they say
    name, words = type(error).__name__, str(error).lower()
    if name == "OutOfMemoryError" or "out of memory" in words or "can't allocate memory" in words:
        return "out_of_memory"
    if "no space left on device" in words:
        return "disk"
    if name.startswith("Dist") or (isinstance(error, RuntimeError) and any(word in words for word in PEER_WORDS)):
        return "hang" if any(word in words for word in HANG_WORDS) else "communication"
    return None
