"""The ways to do harm to a run."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.errors import SurroundingsError
from slurm.drill.field import DrillFailed, Field


def kill_rank(field: Field, rank: int, *, number: signal.Signals = signal.SIGKILL) -> None:
    """Sends a signal to one training process."""
    field.harm()
    os.kill(field.workers()[rank], number)


def kill_hosts(field: Field, hosts: Sequence[str], *, back_after_s: float) -> None:
    """Pulls the plug of hosts; they boot again after a while."""
    field.harm()
    for host in hosts:
        field.cluster.kill_host(host)
    time.sleep(back_after_s)
    for host in hosts:
        field.cluster.start_host(host)


def urgent_job(field: Field, *, seconds: float) -> str:
    """Has a job of the urgent partition take every host for a while; returns its id."""
    nodes = len(field.cluster.hosts)
    command = ["sbatch", "--parsable", "-p", "urgent", "-N", str(nodes), "-n", str(nodes), "--exclusive"]
    more = ["-J", "urgent", "-o", "/dev/null", "--wrap", f"sleep {seconds:g}"]
    field.harm()
    done = field.cluster.run([*command, *more])
    if done.returncode != 0:
        raise DrillFailed(f"the urgent job was refused: {done.stderr.strip()}")
    return done.stdout.strip()


def flip_bytes(path: Path, *, after: bytes = b"", count: int = 64) -> None:
    """Changes some bytes in the middle of a file, not its size, and not its time, as a bad disk would.

    `after` names content behind whose next occurrence it happens: padding is nobody's loss.
    """
    times, content = path.stat(), path.read_bytes()
    place = content.index(after, len(content) // 2) + len(after)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes(byte ^ 0xFF for byte in content[place : place + count]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Fills the disk of a folder to the last byte."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0")
        yield
    finally:
        filler.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(folder: Path, size_mb: int) -> Iterator[Path]:
    """Mounts a small disk. Hosts see it only if they start afterwards."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SurroundingsError(f"a disk to fill cannot be mounted in {folder}: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        unmount = ["umount", "--lazy", str(folder)]
        subprocess.run(unmount, check=False, capture_output=True)
