"""Why attempts end."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from orchestrator.causes import PREEMPTED_EXIT, cause_of, cause_of_exit, kernel_oom_kills
from orchestrator.errors import (
    AsymmetricRanks,
    DamagedArtifact,
    Diverged,
    Fault,
    InputError,
    OrchError,
    Preempted,
    RecipeError,
    StageFailed,
    StorageAway,
    SurroundingsError,
    WorkersLost,
)


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's."""


class DistNetworkError(RuntimeError):
    """Has the name of torch's."""


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (Preempted("saved"), "preempted"),
        (Diverged("nan"), "diverged"),
        (DamagedArtifact("short"), "bad_data"),
        (InputError("no"), "bad_config"),
        (RecipeError([Fault(key="a", message="b")]), "bad_config"),
        (MemoryError(), "out_of_memory"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "disk"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "disk"),
        (RuntimeError("[enforce fail] write failed: No space left on device"), "disk"),
        (ConnectionResetError("peer"), "communication"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"), "communication"),
        (RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv"), "hang"),
        (DistNetworkError("The client socket has timed out"), "hang"),
        (ValueError("width"), "code_error"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "code_error"),
        (OrchError("something"), "unknown"),
        (StageFailed("train ended without its output model"), "code_error"),
        (AsymmetricRanks("rank 1 runs other modules"), "code_error"),
        (StorageAway("most samples cannot be read"), "disk"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), "disk"),
        (TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)), "disk"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "node_failure"),
        (WorkersLost("3 data workers were lost over letters/7: it gave no result for 120 s; ..."), "hang"),
        (WorkersLost("3 data workers were lost over letters/7: it died of SIGSEGV; ..."), "bad_data"),
        (WorkersLost("... the kernel killed it because the machine ran out of memory"), "out_of_memory"),
    ],
)
def test_an_exception_has_a_cause(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause


def test_the_first_cause_of_a_chain_counts() -> None:
    error = SurroundingsError("the checkpoint could not be saved")
    error.__cause__ = OSError(errno.ENOSPC, "full")

    assert cause_of(error) == "disk"


@pytest.mark.parametrize(
    ("status", "oom_kills", "cause", "words"),
    [
        (PREEMPTED_EXIT, 0, "preempted", "saved"),
        (9, 0, "unknown", "exit code 9"),
        (-signal.SIGKILL, 0, "unknown", "from outside"),
        (-signal.SIGKILL, 1, "out_of_memory", "out of memory"),
        (-signal.SIGSEGV, 0, "code_error", "SIGSEGV"),
        (-signal.SIGBUS, 0, "unknown", "SIGBUS"),
    ],
)
def test_a_process_that_left_no_record_has_a_cause(status: int, oom_kills: int, cause: str, words: str) -> None:
    found, detail = cause_of_exit(status, oom_kills=oom_kills)

    assert found == cause
    assert words in detail


def test_a_real_time_signal_has_a_cause_too() -> None:
    process = subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 40)"], check=False)

    assert cause_of_exit(process.returncode, oom_kills=0) == ("unknown", "it died of signal 40")


def test_the_kernel_counts_what_it_kills() -> None:
    assert kernel_oom_kills() >= 0
