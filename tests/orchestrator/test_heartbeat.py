"""Processes that say how far they are, and the parents that notice when they stop saying it."""

import mmap
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.errors import SurroundingsError
from orchestrator.heartbeat import BEAT, MEMORY_BYTES, Beat, Hang, Limits, Watch, limits_of
from orchestrator.progress import Progress
from orchestrator.stacks import Stand, dump
from tests.waiting import until

QUICK = Limits(step_s=0.3, factor=3.0, start_s=60.0, save_s=60.0, work_s=60.0)
STEPS = """
import ctypes, os, sys, time
from orchestrator.heartbeat import Beat
beat = Beat.from_environment()
beat.enter("data")
for step in range(1, 6):
    time.sleep(0.02)
    beat.step(step)
"""


@contextmanager
def worker(code: str, limits: Limits = QUICK) -> Iterator[tuple["subprocess.Popen[bytes]", Watch]]:
    watch = Watch(limits)
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, BEAT: watch.address}, process_group=0)
    try:
        yield process, watch
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        watch.close()


def hang_of(watch: Watch) -> Hang:
    found = until(watch.poll, what="a hang is found")
    assert found is not None
    return found


def stand_of(code: str, limits: Limits = QUICK, *, stop: bool = False) -> Stand:
    with worker(code, limits) as (process, watch):
        if stop:
            until(lambda: watch.pulse().steps >= 5)
            process.send_signal(signal.SIGSTOP)
        hang_of(watch)
        return dump(process.pid, watch)


def test_a_worker_that_makes_steps_is_left_alone_and_one_that_stops_making_them_is_found() -> None:
    with worker(STEPS + "time.sleep(1000)") as (_, watch):
        hang = hang_of(watch)

        assert (hang.step, hang.phase) == (5, "data")
        assert hang.silent_s > 0.3
        assert hang.median_s is not None
        assert 0.02 <= hang.median_s < hang.silent_s
        assert str(hang).startswith("has made no step for")


class Clock:
    """Goes on when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> int:
        return int(self.now_s * 1e9)

    def goes_on(self, seconds: float) -> None:
        self.now_s += seconds


def test_slow_steps_are_measured_by_their_own_median() -> None:
    clock = Clock()
    watch, beat = watched(Limits(step_s=0.5, factor=20.0), clock)
    for step in range(1, 5):
        clock.goes_on(0.3)
        beat.step(step)
        assert watch.poll() is None
    beat.enter("data")
    clock.goes_on(4.9)
    slow = watch.poll()
    clock.goes_on(1.2)
    stuck = watch.poll()

    assert slow is None
    assert stuck is not None
    assert (stuck.median_s, stuck.limit_s) == pytest.approx((0.3, 6.0))
    watch.close()


def test_before_the_first_step_and_while_saving_other_limits_hold() -> None:
    clock = Clock()
    watch, beat = watched(Limits(step_s=0.01, factor=1.1, start_s=60.0, save_s=0.1), clock)
    beat.enter("forward")
    clock.goes_on(0.05)
    started = watch.poll()
    beat.step(1)
    beat.enter("saving")
    clock.goes_on(0.05)
    saving = watch.poll()
    clock.goes_on(0.06)
    stuck = watch.poll()

    assert (started, saving) == (None, None)
    assert stuck is not None
    assert "has been saving for" in str(stuck)
    watch.close()


def test_a_stage_without_steps_beats_by_its_progress() -> None:
    clock = Clock()
    watch, beat = watched(Limits(step_s=0.01, factor=1.1, start_s=0.01, work_s=60.0), clock)
    beat.step(1)
    clock.goes_on(1.0)

    assert watch.pulse().phase == "working"
    assert watch.poll() is None
    watch.close()


def test_a_stage_that_says_again_and_again_how_far_it_is_does_not_beat_by_it() -> None:
    watch, beat = watched(QUICK)
    progress = Progress(None, beat=beat)
    for done in (0, 5, 5, 5, 6):
        progress.advance(done, 10, "record")

    assert watch.pulse().steps == 3
    watch.close()


def test_time_in_which_the_watch_itself_stood_still_does_not_count() -> None:
    clock = Clock()
    watch, beat = watched(Limits(step_s=20.0, factor=1.1), clock)
    beat.enter("data")
    beat.step(1)
    watch.poll()
    clock.goes_on(900.0)  # as if the whole node had been stopped for a quarter of an hour

    assert watch.poll() is None
    watch.close()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of the system calls are those of x86-64")
def test_a_step_costs_no_system_call() -> None:
    strictly = """
import gc, struct
gc.disable()
beat.step(6)
said = b"no call"
rules = [(0x20, 0, 0, 0), (0x15, 1, 0, 1), (0x15, 0, 1, 231), (6, 0, 0, 0x7FFF0000), (6, 0, 0, 0x80000000)]
rules = b"".join(struct.pack("HBBI", *rule) for rule in rules)  # of calls allow write and exit_group, else kill
held = ctypes.create_string_buffer(rules)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 5, ctypes.addressof(held)))
control = ctypes.CDLL(None).prctl
control(38, 1, 0, 0, 0)
assert control(22, 2, program) == 0
for step in range(7, 500):
    beat.enter("forward")
    beat.enter("agreeing")
    beat.step(step)
os.write(1, said)
"""
    watch = Watch(QUICK)
    environment = {**os.environ, BEAT: watch.address}
    done = subprocess.run(
        [sys.executable, "-c", STEPS + strictly], env=environment, capture_output=True, check=False
    )  # fmt: skip

    assert done.stdout == b"no call"
    assert watch.pulse().step == 499
    watch.close()


def test_a_worker_that_cannot_beat_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BEAT, "/proc/1/fd/99999")

    with pytest.raises(SurroundingsError, match=BEAT):
        Beat.from_environment()


def test_the_limits_come_back_from_a_stage_document() -> None:
    assert limits_of({"watch": {"step_s": 5.0, "straggler": 2.0}}) == Limits(step_s=5.0, straggler=2.0)
    assert limits_of({}) == Limits()


def test_a_process_that_sleeps_is_shown_where_it_sleeps() -> None:
    stand = stand_of(STEPS + "def nap():\n    time.sleep(1000)\nnap()")

    assert stand.place.endswith("in nap")
    assert "most recent call first" in stand.text
    assert (stand.halted, stand.waits_in) == ("", "")


def test_a_process_that_holds_the_interpreter_lock_is_shown_too() -> None:
    stand = stand_of(STEPS + "def stuck():\n    ctypes.PyDLL(None).sleep(1000)\nstuck()")

    assert stand.place.endswith("in stuck")


@pytest.mark.parametrize("spy", [True, False])
def test_a_stopped_process_is_shown_and_stays_stopped(monkeypatch: pytest.MonkeyPatch, spy: bool) -> None:  # noqa: FBT001
    if not spy:
        monkeypatch.setattr("orchestrator.stacks._spied", lambda _pid, _timeout_s: "")
    with worker(STEPS + "def nap():\n    beat.step(6)\n    time.sleep(1000)\nnap()") as (process, watch):
        until(lambda: watch.pulse().steps == 6)
        process.send_signal(signal.SIGSTOP)
        hang_of(watch)
        stand = dump(process.pid, watch)
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]

        assert stand.halted == "it is stopped (SIGSTOP)"
        assert stand.place.endswith("in nap")
        assert state == "T"


def test_a_process_that_never_came_to_beat_is_not_killed_by_the_question() -> None:
    with worker("import time\ntime.sleep(1000)", Limits(start_s=0.3)) as (process, watch):
        hang = hang_of(watch)
        stand = dump(process.pid, watch)

        assert hang.phase == "starting"
        assert process.poll() is None
        assert f"process {process.pid}" in stand.text


def test_the_stacks_of_children_are_shown_as_well() -> None:
    stand = stand_of(STEPS + "def child():\n    time.sleep(1000)\nif os.fork() == 0:\n    child()\ntime.sleep(1000)")

    assert stand.text.count("== process") == 2
    assert "in child" in stand.text


@pytest.mark.needs("torch")
@pytest.mark.slow
def test_a_data_worker_that_hangs_is_named_behind_the_rank_that_waits_for_it() -> None:
    pool = """
from orchestrator.data.pool import Workers, computed
def decode():
    time.sleep(1000)
def batch(number):
    if number == 3:
        decode()
    return number
for number in computed(batch, 5, Workers(number=2), name_of=str):
    beat.step(10 + number)
"""
    stand = stand_of(STEPS.replace("range(1, 6)", "range(0)") + pool, Limits(step_s=1.0, factor=3.0))

    assert "orchestrator/data/pool.py" in stand.place
    assert "and its data worker" in stand.place
    assert stand.place.endswith("in decode")
    assert stand.text.count("== process") == 3


def watched(limits: Limits, clock: Callable[[], int] = time.monotonic_ns) -> tuple[Watch, Beat]:
    watch = Watch(limits, clock=clock)
    with Path(watch.address).open("r+b", buffering=0) as file:
        return watch, Beat(mmap.mmap(file.fileno(), MEMORY_BYTES), clock=clock)
