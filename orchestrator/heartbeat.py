"""Tells whether a process of a stage still makes steps: a few bytes of memory that it writes and its parent reads.

Nothing touches a file system: the memory belongs to the parent and has no name, so a killed parent leaves nothing, and
a step costs no system call (the clock is read in user space). How whoever starts a worker (a warden, `ranks.py`) uses
it:

    watch = Watch(limits)                                  # before the worker starts
    environment[BEAT] = watch.address
    worker = subprocess.Popen(...)
    while worker.poll() is None:                           # a few times a second, to a few seconds
        hang = watch.poll()                                # None, or why this is a hang; nothing is done about it here
        if hang is not None:
            stand = stacks.dump(worker.pid, watch)         # orchestrator.stacks: of it and of its children; <= 15 s
            exits.write_stacks(folder, rank, stand)        # and hung_exit(made_exit(...), hang, stand) below
            # wait hang.grace_s, or the peers lose this one before their own parents have looked; then kill its group
    pulse = watch.pulse()                                  # step and phase it was last seen in, also after its end
    exits.write_exit(folder, made_exit(...))               # orchestrator.exits: if it did not end well, for verdict.py
    watch.close()

All times are CLOCK_MONOTONIC of the node that both live on; clocks of other nodes do not matter.
"""

import faulthandler
import mmap
import os
import signal
import statistics
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any, Literal, Self, get_args

from orchestrator.errors import SurroundingsError
from orchestrator.records import record

Phase = Literal["starting", "data", "forward", "backward", "agreeing", "saving", "evaluating", "working", "ending"]

BEAT = "ORCH_BEAT"  # where the memory is that a worker writes its beats to
DUMP_SIGNAL = signal.SIGRTMIN + 3  # prints the stacks of all threads; NCCL takes USR1, preemption USR2
MEMORY_BYTES = 4096  # of the beat; behind it, what DUMP_SIGNAL prints

_PHASES: tuple[Phase, ...] = get_args(Phase)
_STEPPING: frozenset[Phase] = frozenset({"data", "forward", "backward", "agreeing"})
_LAYOUT = struct.Struct("<QqqqqQQ")  # version, pid, steps, step, phase, pulse, last step's length; odd version: torn
_MEDIAN_OF = 64  # steps
_MOST_BETWEEN_POLLS_S = 5.0  # of a longer time its parent, and likely the whole node, stood still itself
_GRACE_S, _GRACE_SHARE = 5.0, 0.05  # medians of peers differ, and so the moments at which they are found to hang


@record
class Limits:
    """How long a process may go without a sign before it counts as hung. Never part of a fingerprint."""

    step_s: float = 60.0  # between two steps, or `factor` times their own median if that is longer
    factor: float = 10.0
    start_s: float = 1800.0  # from the start of the process to its first step
    save_s: float = 1800.0  # one checkpoint, or what is left to do after the last step
    work_s: float = 3600.0  # between two signs of a stage that counts no training steps, or `factor` times their median
    straggler: float = 1.5  # a rank that needs so many times the ranks' median is reported; it is not ended

    def __post_init__(self) -> None:
        """Refuses limits that would end every process."""
        for name in ("step_s", "start_s", "save_s", "work_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0")
        for name in ("factor", "straggler"):
            if getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 1")


def limits_of(document: Mapping[str, Any]) -> Limits:
    """Reads the limits in a `stage.json`; the usual ones if it has none."""
    plain = document.get("watch", {})
    return Limits(**{field.name: plain[field.name] for field in fields(Limits) if field.name in plain})


@record
class Pulse:
    """What a process last said of itself."""

    pid: int  # 0: it has not said anything yet
    steps: int  # done since it started
    step: int  # its number in the stage
    phase: Phase
    since_ns: int  # the last step, or the last change between starting, stepping, saving, ...
    step_s: float  # how long the last step took


@record
class Hang:
    """A process that gave no sign for too long."""

    phase: Phase
    step: int
    silent_s: float
    limit_s: float
    median_s: float | None  # of its own steps
    grace_s: float  # to wait before it is killed, so that its peers are found to hang too

    def __str__(self) -> str:
        """Reads "has made no step for 63 s (its median is 0.4 s)"."""
        if self.phase in _STEPPING:
            usual = "it made none before" if self.median_s is None else f"its median is {self.median_s:.2g} s"
            return f"has made no step for {self.silent_s:.0f} s ({usual})"
        return f"has been {self.phase} for {self.silent_s:.0f} s without a sign (the limit is {self.limit_s:g} s)"

    def plain(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        return asdict(self)


class Beat:
    """What the worker writes; the one without memory writes nothing, for processes that nobody watches."""

    def __init__(self, memory: mmap.mmap | None = None, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Says that this process is starting."""
        self._clock = clock
        self._memory = memory
        self._stacks: IO[bytes] | None = None
        self._pid = os.getpid()
        self._version, self._steps, self._step = 0, 0, 0
        self._phase: Phase = "starting"
        self._since_ns, self._length_ns = self._clock(), 0
        self._write()

    @classmethod
    def from_environment(cls) -> Self:
        """Opens the memory that ORCH_BEAT names, and lets DUMP_SIGNAL print this process's stacks behind it.

        The handler is C and needs no interpreter lock: it answers from inside a collective too. Forked children have
        it as well.
        """
        address = os.environ.get(BEAT)
        if address is None:
            return cls()
        try:
            file = Path(address).open("r+b", buffering=0)  # noqa: SIM115  closed below, where it is mapped
            beat = cls(mmap.mmap(file.fileno(), MEMORY_BYTES))
            beat._stacks = Path(address).open("ab", buffering=0)  # noqa: SIM115  the handler writes to it
        except OSError as error:
            raise SurroundingsError(f"{BEAT}: {address} cannot be opened: {error}") from error
        file.close()
        faulthandler.register(DUMP_SIGNAL, file=beat._stacks, all_threads=True, chain=False)
        return beat

    def enter(self, phase: Phase) -> None:
        """Says what is being done now."""
        if phase not in _STEPPING or self._phase not in _STEPPING:  # within a step only the step counts
            self._since_ns = self._clock()
        self._phase = phase
        self._write()

    def step(self, number: int) -> None:
        """Says that a step (or whatever a stage counts) is done."""
        now = self._clock()
        if self._phase == "starting":
            self._phase = "working"
        self._length_ns, self._since_ns = now - self._since_ns, now
        self._steps, self._step = self._steps + 1, number
        self._write()

    @property
    def done(self) -> int:
        """Is the last step that is done."""
        return self._step

    @property
    def phase(self) -> Phase:
        """Is what was said last."""
        return self._phase

    def _write(self) -> None:
        if self._memory is None:
            return
        values = (self._pid, self._steps, self._step, _PHASES.index(self._phase), self._since_ns, self._length_ns)
        _LAYOUT.pack_into(self._memory, 0, self._version + 1, *values)
        self._version += 2
        _LAYOUT.pack_into(self._memory, 0, self._version, *values)


class Watch:
    """What the parent reads, for one worker."""

    def __init__(self, limits: Limits, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Makes the memory. The worker counts as starting from now on."""
        self._limits, self._clock = limits, clock
        self._file = os.memfd_create("orch-beat")
        os.write(self._file, b"\0" * MEMORY_BYTES)
        self._memory = mmap.mmap(self._file, MEMORY_BYTES)
        self._born_ns = self._clock()
        self._seen = self.pulse()
        self._looked_ns = self._born_ns
        self._silent_s = 0.0
        self._lengths_s: deque[float] = deque(maxlen=_MEDIAN_OF)

    @property
    def address(self) -> str:
        """Is what the worker finds in ORCH_BEAT; it is there as long as this process and this watch are."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def pulse(self) -> Pulse:
        """Returns what the worker last said."""
        while True:
            version, pid, steps, step, phase, since_ns, length_ns = _LAYOUT.unpack_from(self._memory)
            if version % 2 == 0 and _LAYOUT.unpack_from(self._memory)[0] == version:
                break
            time.sleep(0)  # it was writing; a worker that was stopped in the middle is told from its pid
            if self._torn(version):
                break
        since_ns = since_ns if pid else self._born_ns
        return Pulse(
            pid=pid, steps=steps, step=step, phase=_PHASES[phase], since_ns=since_ns, step_s=length_ns / 1e9
        )  # fmt: skip

    def poll(self) -> Hang | None:
        """Tells whether the worker hangs. Time in which this process itself stood still does not count."""
        pulse, now_ns = self.pulse(), self._clock()
        between_s = (now_ns - self._looked_ns) / 1e9
        if pulse.since_ns != self._seen.since_ns:
            if pulse.steps != self._seen.steps:
                self._lengths_s.append(pulse.step_s)
            between_s, self._silent_s = min(between_s, (now_ns - pulse.since_ns) / 1e9), 0.0
        self._silent_s += min(between_s, _MOST_BETWEEN_POLLS_S)
        self._seen, self._looked_ns = pulse, now_ns
        return self.silence() if self._silent_s > self._limit_s(pulse) else None

    def silence(self) -> Hang:
        """Returns for how long the worker has given no sign, whether that is too long or not; as last polled."""
        limit_s = self._limit_s(self._seen)
        return Hang(
            phase=self._seen.phase, step=self._seen.step, silent_s=self._silent_s, limit_s=limit_s,
            median_s=self._median_s(), grace_s=max(_GRACE_S, _GRACE_SHARE * limit_s),
        )  # fmt: skip

    def printed(self, after: int = 0) -> bytes:
        """Returns what DUMP_SIGNAL has printed, from a number of bytes on."""
        return os.pread(self._file, 1 << 20, MEMORY_BYTES + after)

    def close(self) -> None:
        """Gives the memory back."""
        self._memory.close()
        os.close(self._file)

    def _limit_s(self, pulse: Pulse) -> float:
        limits, usual_s = self._limits, self._limits.factor * (self._median_s() or 0.0)
        if pulse.phase == "starting" or (pulse.phase in _STEPPING and pulse.steps == 0):
            return limits.start_s
        if pulse.phase in _STEPPING:
            return max(limits.step_s, usual_s)
        return max(limits.work_s, usual_s) if pulse.phase in {"working", "evaluating"} else limits.save_s

    def _median_s(self) -> float | None:
        return statistics.median(self._lengths_s) if self._lengths_s else None

    def _torn(self, version: int) -> bool:
        """Tells whether the worker was stopped or killed while it wrote: the values of an odd version are whole."""
        time.sleep(0.001)
        return bool(_LAYOUT.unpack_from(self._memory)[0] == version)
