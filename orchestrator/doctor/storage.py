"""Tries whether a folder is fit for runs: files, renames, locks, room, and whether its clock is ours."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.doctor.findings import Finding, doubtful, fine, unfit

GIGABYTE = 1e9
LEAST_GB, ENOUGH_GB = 1.0, 20.0  # below the first nothing ends well; a checkpoint of 1 B parameters takes 14
LEAST_FILES = 100_000  # that can still be made: a run of a day makes thousands
CLOCK_S = 5.0
ELSEWHERE = "launch from another folder, or name one as `runs` in the recipe or as ORCH_RUNS"
MOUNTS = Path("/proc/self/mounts")


def folder_findings(runs: Path) -> Iterator[Finding]:
    """Tries, in the folder of runs or the nearest one above that exists, what runs do there; leaves nothing behind."""
    about, place = "run folder", nearest_there(runs)
    if not place.is_dir():
        yield unfit(about, f"{place} is a file", ELSEWHERE)
        return
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".orch-doctor.") as made:
            wrong = [*_tried(Path(made))]
    except OSError as error:
        yield unfit(about, f"{place} cannot be written to: {error.strerror or error}", ELSEWHERE)
        return
    yield from wrong or [fine(about, f"{place} ({file_system(place)}): files are written, renamed and locked")]
    yield from _room("room for runs", place, enough_gb=ENOUGH_GB)
    yield from _room("room for temporary files", Path(tempfile.gettempdir()), enough_gb=LEAST_GB)


def nearest_there(path: Path) -> Path:
    """Returns a path, or the nearest one above it that exists."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def file_system(place: Path) -> str:
    """Returns the type of the file system that a path lies on, as the kernel calls it: `ext4`, `nfs4`, `lustre`."""
    found = (Path("/"), "unknown")
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found[1]
    for line in lines:
        _, mounted, kind, *_ = line.split(" ")
        folder = Path(mounted.replace("\\040", " "))
        if place.resolve().is_relative_to(folder) and folder.is_relative_to(
            found[0]
        ):  # the later one hides the earlier
            found = (folder, kind)
    return found[1]


def clock_off(stamp: float, before: float, after: float) -> float:
    """Says how far a stamp is from the time in which it was given: a file server that is slow is not a clock."""
    return max(0.0, stamp - after) + min(0.0, stamp - before)


def _tried(folder: Path) -> Iterator[Finding]:
    draft, target = folder / "draft", folder / "target"
    target.write_bytes(b"old")
    before = time.time()
    with draft.open("wb") as file:
        file.write(b"new")
        file.flush()
        os.fsync(file.fileno())
        off = clock_off(os.fstat(file.fileno()).st_mtime, before, time.time())
    with target.open("rb") as reader:
        draft.replace(target)
        seen = reader.read()
    (folder / "made").mkdir()
    (folder / "made").rename(folder / "moved")
    if (seen, target.read_bytes(), draft.exists()) != (b"old", b"new", False):
        yield unfit(
            "renames", "a file that is replaced is not replaced at once: half-written work looks whole", ELSEWHERE
        )
    if not _locks(target):
        yield unfit("locks", "two can hold one lock (flock): two launches would work on one run", ELSEWHERE)
    if abs(off) > CLOCK_S:
        message = f"this machine is {abs(off):.1f} s {'behind' if off > 0 else 'ahead of'} the file server"
        yield doubtful("clock", message, "let both keep time by NTP: times of logs and curves will not agree")


def _locks(path: Path) -> bool:
    with path.open("rb") as one, path.open("rb") as other:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _room(about: str, place: Path, *, enough_gb: float) -> Iterator[Finding]:
    free_gb, files = shutil.disk_usage(place).free / GIGABYTE, os.statvfs(place)
    said, advice = f"{place} has {free_gb:,.1f} GB left", "remove what is not needed, or ask for a larger quota"
    if free_gb < LEAST_GB:
        yield unfit(about, said, advice)
    elif free_gb < enough_gb:
        yield doubtful(about, f"{said}; `orch plan` says what checkpoints take", advice)
    elif files.f_files and files.f_favail < LEAST_FILES:  # some file systems count none
        yield doubtful(about, f"{place} takes only {files.f_favail:,} more files", advice)
    else:
        yield fine(about, said)
