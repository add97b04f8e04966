"""Where a process that hangs stands: its stacks and those of its children, and what they mean.

DUMP_SIGNAL makes each process print its own (see heartbeat.py); py-spy, where it is installed, is asked for those that
cannot answer. Without it a stopped process is continued for the moment of its answer.
"""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.heartbeat import DUMP_SIGNAL, Watch
from orchestrator.records import record

_ANSWER_S, _QUIET_S, _BRIEFLY_S = 2.0, 0.1, 0.003
_LONGEST_S = 15.0  # for all of it: there may be many data workers
_SPY_S = 5.0
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x", re.MULTILINE)
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
_COLLECTIVES = re.compile(r"/torch/distributed/(?:distributed_c10d|_functional_collectives)\.py$|/deepspeed/comm/")
_HANDLES = re.compile(r"/deepspeed/runtime/.*\.py$")  # their `wait` waits for a collective that was begun before
_LIBRARIES = re.compile(r"/(?:site-packages|dist-packages|lib/python3[.\d]*)/|^<frozen")
_OURS = re.compile(r"(?:^|/)((?:orchestrator|stages|slurm|tests)/.+)")
_NEAR = 6  # innermost frames in which a collective is looked for
_POOL = "orchestrator/data/pool.py"
_IDLE = "_serve"  # the innermost function of a data worker that has nothing to do


@record
class Frame:
    """One line of a stack."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        """Reads "stages/glamm/collate.py:41 in collate"."""
        ours = _OURS.search(self.file)
        name = ours[1] if ours else re.split(r"/(?:site-packages|dist-packages|lib/python3[.\d]*)/", self.file)[-1]
        return f"{name}:{self.line} in {self.function}"


@record
class Stand:
    """Where a process stands."""

    text: str  # all stacks, for people
    place: str  # of its main thread, or of the data worker that it waits for; empty if nobody could tell
    waits_in: str  # the collective in which it waits for its peers; empty if in none
    halted: str  # what keeps it from running at all; empty if nothing does


def dump(pid: int, watch: Watch) -> Stand:
    """Asks a process and its descendants where they stand. Takes 15 s at most."""
    deadline = time.monotonic() + _LONGEST_S
    parts: list[str] = []
    halted, place, waits_in = _halted(pid), "", ""
    text = _stacks(pid, watch, deadline)
    parts.append(_titled(pid, halted, text))
    threads = _threads(text)
    if threads:
        waits_in = next(filter(None, map(_collective, threads)), "")
        place = _place(threads[-1])  # the main thread is the first one that was started, and printed last
    waits_for_data = bool(threads) and any(frame.file.endswith(_POOL) for frame in threads[-1][:_NEAR])
    for child in _descendants(pid):
        if time.monotonic() > deadline:
            parts.append("(there was no time for the other processes)\n")
            break
        text = _stacks(child, watch, deadline)
        state = _halted(child)
        parts.append(_titled(child, state, text))
        busy = _busy(text)
        if waits_for_data and (busy or state):
            place = f"{place}, and its data worker {child} in {busy or state}"
            waits_for_data = False
    return Stand(text="\n".join(parts), place=place, waits_in=waits_in, halted=halted)


def _stacks(pid: int, watch: Watch, deadline: float) -> str:
    stopped = _state(pid)[0] == "T"
    if stopped and (text := _spied(pid, min(_SPY_S, deadline - time.monotonic()))):
        return text  # its own answer would need it to go on, and its peers with it, before they are asked themselves
    text = _answer(pid, watch, stopped=stopped) if _listens(pid) else ""
    return text or _spied(pid, min(_SPY_S, deadline - time.monotonic()))


def _answer(pid: int, watch: Watch, *, stopped: bool) -> str:
    """Lets a process print its stacks; empty if it does not, as one that waits for a dead disk."""
    before = len(watch.printed())
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, DUMP_SIGNAL)
        if stopped:
            os.kill(pid, signal.SIGCONT)
        text = _when_quiet(watch, before, _BRIEFLY_S if stopped else _QUIET_S)
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        return text
    return ""


def _when_quiet(watch: Watch, before: int, quiet_s: float) -> str:
    latest, text, heard = time.monotonic() + _ANSWER_S, b"", time.monotonic()
    while time.monotonic() < latest:
        now = watch.printed(before)
        if now != text:
            text, heard = now, time.monotonic()
        elif text and time.monotonic() - heard > quiet_s:
            break
        time.sleep(quiet_s / 10)
    return text.decode("utf-8", errors="replace")


def _spied(pid: int, timeout_s: float) -> str:
    program = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if program is None or timeout_s <= 0:
        return ""
    command = [program, "dump", "--nonblocking", "--full-filenames", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return _as_printed(done.stdout) if done.returncode == 0 else ""


def _as_printed(text: str) -> str:
    """Turns what py-spy says into what a process itself would print: its main thread comes last there."""
    lines = re.sub(r"^Thread .*$", r"Thread 0x0 (most recent call first; py-spy)", text, flags=re.MULTILINE)
    framed = re.sub(r"^ +(\S+) \((.+):(\d+)\)$", r'  File "\2", line \3 in \1', lines, flags=re.MULTILINE)
    return "\n".join(block.rstrip() + "\n" for block in reversed(_blocks(framed)))


def _threads(text: str) -> list[list[Frame]]:
    return [
        [Frame(file=file, line=int(line), function=function) for file, line, function in _FRAME.findall(block)]
        for block in _blocks(text)
    ]


def _blocks(text: str) -> list[str]:
    """Cuts what was printed into threads."""
    starts = [match.start() for match in _THREAD.finditer(text)]
    return [text[start:end] for start, end in itertools.pairwise([*starts, len(text)])]


def _collective(frames: Sequence[Frame]) -> str:
    """Names the collective in which a thread waits."""
    for frame in frames[:_NEAR]:
        if _COLLECTIVES.search(frame.file) and frame.function != "wrapper":
            return frame.function
        if _HANDLES.search(frame.file) and frame.function == "wait":
            return "all_gather or reduce"
    return ""


def _place(frames: Sequence[Frame]) -> str:
    """Names the innermost line that is not a library's, and the innermost one if that is another."""
    if not frames:
        return ""
    ours = next((frame for frame in frames if not _LIBRARIES.search(frame.file)), frames[0])
    return str(ours) if ours is frames[0] else f"{ours} ({frames[0]})"


def _busy(text: str) -> str:
    """Names where a data worker stands, unless it only waits to be asked for something."""
    threads = _threads(text)
    if not threads or not threads[-1] or threads[-1][0].function == _IDLE:
        return ""
    return _place(threads[-1])


def _listens(pid: int) -> bool:
    """Tells whether a process catches DUMP_SIGNAL, which would kill it otherwise."""
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", _read(Path(f"/proc/{pid}/status")), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (DUMP_SIGNAL - 1) & 1)


def _halted(pid: int) -> str:
    letter, parent = _state(pid)
    del parent
    if letter == "T":
        return "it is stopped (SIGSTOP)"
    if letter == "t":
        return "it is stopped by a debugger"
    if letter == "D":
        where = _read(Path(f"/proc/{pid}/wchan")).strip("0\n")
        return f"it waits for a disk or a device in the kernel{f' ({where})' if where else ''}"
    return ""


def _state(pid: int) -> tuple[str, int]:
    """Returns the kernel's letter for what a process does, and its parent."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return (fields[0], int(fields[1])) if fields else ("", 0)


def _descendants(pid: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            children.setdefault(_state(int(path.name))[1], []).append(int(path.name))
    waiting = sorted(children.get(pid, []))
    while waiting:
        child = waiting.pop(0)
        yield child
        waiting += sorted(children.get(child, []))


def _titled(pid: int, halted: str, text: str) -> str:
    command = _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()[:200]
    title = f"== process {pid}{f', {halted}' if halted else ''}: {command}"
    return f"{title}\n{text or '(it did not answer, and py-spy is not there or could not look into it)'}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
