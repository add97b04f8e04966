"""What can be wrong with a node before any work has begun on it: each probe looks at one thing and names its faults."""

import contextlib
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.doctor.storage import clock_off
from orchestrator.resources import Resources
from slurm.cluster import Cluster

GIGABYTE = 1e9
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - not a temporary file: what processes of a node share
SHARED_MEMORY_GB = 0.03  # data workers hand samples over through it; containers often get 64 MB
SPARE_SHARE = 0.9  # of the memory a stage asks for: the rest is what the system itself uses by now
NVIDIA_SMI_TIMEOUT_S = 20.0  # a GPU that has fallen off its bus makes it wait for ever
RUN_FOLDER = "the run folder"  # is in the words of every fault that its file system may have on many nodes at once
SIOCGIFFLAGS, UP_AND_RUNNING = 0x8913, 0x1 | 0x40


def gpu_faults(cluster: Cluster, resources: Resources) -> Iterator[str]:
    """Counts the GPUs and asks each for memory errors that cannot be corrected, and for repairs that wait."""
    asked = resources.gpus_per_node
    if not asked or not cluster.checks.gpus:
        return
    try:
        errors = _asked_gpus("index,ecc.errors.uncorrected.volatile.total")
    except (OSError, subprocess.SubprocessError) as error:
        yield f"nvidia-smi does not answer: {_words(error)}"
        return
    if len(errors) < asked:
        yield f"{len(errors)} GPUs answer, {asked} are asked for"
    for index, count in errors:
        if count.isdigit() and int(count) > 0:
            yield f"GPU {index} has {count} memory errors that could not be corrected (ECC)"
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # older drivers do not know the question
        for index, pending in _asked_gpus("index,remapped_rows.pending"):
            if pending in {"1", "Yes"}:
                yield f"GPU {index} needs a reset: rows of its memory wait to be remapped"


def disk_faults(cluster: Cluster) -> Iterator[str]:
    """Looks for room where temporary files go. The run's own disk is everybody's: no node is to blame for that one."""
    asked, place = cluster.checks.disk_gb, tempfile.gettempdir()
    try:
        free = shutil.disk_usage(place).free / GIGABYTE
    except OSError as error:
        yield f"{place} cannot be asked for its room: {error.strerror}"
        return
    if free < asked:
        yield f"{place} has {free:.2f} GB left, needs {asked:g} (checks.disk_gb)"


def run_faults(cluster: Cluster, run: Path, keeper_time: float | None) -> Iterator[str]:
    """Writes a file into the run folder and reads its time: the folder is shared, and its server's clock is ours."""
    if not run.is_dir():
        yield f"{RUN_FOLDER} {run} is not visible here: is its file system mounted on this node?"
        return
    place = run / "logs"
    try:
        place.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place, prefix=f".check.{socket.gethostname()}.") as file:
            before = time.time()
            file.write(b"checked")
            file.flush()
            os.fsync(file.fileno())
            off = clock_off(os.fstat(file.fileno()).st_mtime, before, time.time())
    except OSError as error:
        yield f"{RUN_FOLDER} cannot be written to from here: {error.strerror}"
        return
    if abs(off) > cluster.checks.clock_s:
        yield f"the clock is {abs(off):.1f} s {'behind' if off > 0 else 'ahead of'} {RUN_FOLDER}'s (checks.clock_s)"
    elif keeper_time is not None and keeper_time - time.time() > cluster.checks.clock_s:
        yield f"the clock is {keeper_time - time.time():.1f} s behind the first node's (checks.clock_s)"


def interface_faults(cluster: Cluster) -> Iterator[str]:
    """Looks whether the network interfaces that gloo and NCCL are told to use are there and up."""
    if cluster.interface == "auto" or cluster.interface.startswith("^"):
        return
    there = [name for _, name in socket.if_nameindex()]
    for wanted in cluster.interface.removeprefix("=").split(","):
        if wanted not in there:
            yield f"there is no network interface {wanted} (interface); there are {', '.join(there)}"
        elif not _is_up(wanted):
            yield f"the network interface {wanted} is down (interface)"


def memory_faults(resources: Resources) -> Iterator[str]:
    """Compares the memory that is free with what the stage asks for, and looks at what processes share."""
    available = _available_gb()
    if resources.memory_gb is not None and available is not None and available < SPARE_SHARE * resources.memory_gb:
        yield f"{available:.1f} GB of memory are free, the stage asks for {resources.memory_gb:g} (resources.memory_gb)"
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free / GIGABYTE
    except OSError as error:
        yield f"{SHARED_MEMORY} is not there: {error.strerror}; data workers hand samples over through it"
        return
    if free < SHARED_MEMORY_GB:
        needs = f"needs {1000 * SHARED_MEMORY_GB:.0f}: data workers hand samples over through it"
        yield f"{SHARED_MEMORY} has {1000 * free:.0f} MB left, {needs}"


def _asked_gpus(question: str) -> list[tuple[str, str]]:
    command = ["nvidia-smi", f"--query-gpu={question}", "--format=csv,noheader,nounits"]
    done = subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=NVIDIA_SMI_TIMEOUT_S
    )
    lines = [line.split(",") for line in done.stdout.splitlines() if line.count(",") == 1]
    return [(index.strip(), value.strip()) for index, value in lines]


def _words(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return (error.output or "").strip().partition("\n")[0] or f"exit code {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it took more than {error.timeout:g} s"
    return "it is not installed" if isinstance(error, FileNotFoundError) else str(error)


def _is_up(interface: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        answer = fcntl.ioctl(asking, SIOCGIFFLAGS, struct.pack("256s", interface.encode()[:15]))
    (flags,) = struct.unpack_from("H", answer, 16)
    return bool(flags & UP_AND_RUNNING == UP_AND_RUNNING)


def _available_gb() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found) * 1024 / GIGABYTE
