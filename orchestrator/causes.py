"""Why a process ended: from an exception, a signal, an exit code or its log to a failure class of the interface."""

import errno
import re
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from orchestrator.errors import (
    AsymmetricRanks,
    DamagedArtifact,
    Diverged,
    InputError,
    OrchError,
    Preempted,
    RecipeError,
    StageFailed,
    StorageAway,
    WorkersLost,
)

Cause = Literal[
    "preempted", "timeout", "node_failure", "out_of_memory", "hang", "communication", "bad_data", "diverged",
    "bad_config", "code_error", "disk", "cancelled", "unknown",
]  # fmt: skip

PREEMPTED_EXIT = 75  # EX_TEMPFAIL: everything is saved, start me again

BAD_NODE_EXIT = 76  # EX_PROTOCOL: this node is not fit for work, see node_HOST.json

DISK_ERRNOS = frozenset({  # full, or a file system that does not answer
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EREMOTEIO, errno.ETIMEDOUT,
})  # fmt: skip
HANG_WORDS = ("timed out waiting", "timeout", "timed out")
PEER_WORDS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "gloo",
    "nccl",
)
# what drivers, NCCL and kernels print of hardware that is broken; Xids: nvidia's list of those that are not the code's
_BROKEN = re.compile(
    r"uncorrectable ecc|ecc error|fallen off the bus|nvlink error|double bit|row remap|"
    r"\bxid\b[^\n]*?: (?:48|61|62|63|64|69|74|79|92|94|95|119|120|140)\b|cuda error: unknown error|"
    r"no cuda-capable device|cuda_error_(?:ecc|no_device|unknown)",
    re.IGNORECASE,
)
_STUCK = re.compile(r"watchdog caught collective operation timeout|timed out waiting \d+ms", re.IGNORECASE)
_PEER_LOST = re.compile(
    r"ncclremoteerror|ncclsystemerror|nccl warn .*(?:connection|socket|net|ib)|remote process exited or there was a "
    r"network error|connection (?:closed|reset) by (?:remote )?peer",
    re.IGNORECASE,
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
        return "unknown", "it was killed from outside (SIGKILL): not by orch, and the kernel had memory enough"
    crashed = -status in {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}
    return ("code_error" if crashed else "unknown"), f"it died of {name}"


def signal_number(name: str) -> int:
    """Returns the number of a signal that `exits.py` has written as "SIGKILL" or "signal 40"."""
    known = signal.Signals.__members__.get(name)
    return known if known is not None else int(name.rpartition(" ")[2])


def cause_in_log(lines: Iterable[str]) -> tuple[Cause, str] | None:
    """Finds what only a log says, of a process that could not leave a record: the cause and its line.

    Broken hardware before a collective that never ended, and that before a lost peer: the later ones follow from it.
    """
    found: dict[Cause, str] = {}
    words: tuple[tuple[re.Pattern[str], Cause], ...] = (
        (_BROKEN, "node_failure"), (_STUCK, "hang"), (_PEER_LOST, "communication"),
    )  # fmt: skip
    for line in lines:
        for pattern, cause in words:
            if cause not in found and pattern.search(line):
                found[cause] = line.strip()[:300]
    return next(((cause, found[cause]) for _, cause in words if cause in found), None)


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
        (AsymmetricRanks, "code_error"),
        (DamagedArtifact, "bad_data"),
        (RecipeError, "bad_config"),
        (InputError, "bad_config"),
        (StageFailed, "code_error"),
        (StorageAway, "disk"),
        (MemoryError, "out_of_memory"),
        (ConnectionError, "communication"),
    )
    for kind, cause in by_class:
        if isinstance(error, kind):
            return cause
    if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
        return "disk"
    found = _cause_in_words(error)
    if found is None and isinstance(error, WorkersLost):  # silent ones wait for something, others choke on a sample
        return "hang" if "it gave no result" in str(error) else "bad_data"
    return found


def _cause_in_words(error: BaseException) -> Cause | None:
    # torch is not imported here, so its classes are known by name and its RuntimeErrors by what they say
    name, words = type(error).__name__, str(error).lower()
    if name == "OutOfMemoryError" or "out of memory" in words or "can't allocate memory" in words:
        return "out_of_memory"
    if "no space left on device" in words:
        return "disk"
    if _BROKEN.search(words):
        return "node_failure"
    if name.startswith("Dist") or (isinstance(error, RuntimeError) and any(word in words for word in PEER_WORDS)):
        return "hang" if any(word in words for word in HANG_WORDS) else "communication"
    return None
