import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.stopping import lacking_s, measured_save_s

ASKED_TWICE = """
import os, signal, sys
from orchestrator.stopping import StopRequest
stop = StopRequest()
stop()
for number in (signal.SIGUSR2, signal.SIGTERM):
    os.kill(os.getpid(), number)
    print(stop(), flush=True)
print(stop.time_left_s(), flush=True)
"""
NEVER_ASKED = "import os, signal; from orchestrator.stopping import StopRequest; s = StopRequest(); os.kill(0, 15)"


def run(code: str, *, deaf: bool = False, **environment: str) -> "subprocess.CompletedProcess[str]":
    def become_deaf() -> None:
        if deaf:
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, text=True, capture_output=True, check=False,
        preexec_fn=become_deaf, process_group=0,
    )  # fmt: skip


def test_either_signal_is_a_wish_to_stop_for_a_process_that_nobody_made_deaf() -> None:
    assert run(ASKED_TWICE).stdout.split()[:2] == ["True", "True"]


def test_a_process_that_was_made_deaf_to_usr2_before_it_began_stays_so_and_hears_sigterm() -> None:
    assert run(ASKED_TWICE, deaf=True).stdout.split()[:2] == ["False", "True"]


def test_the_time_left_is_that_until_the_job_ends_or_until_who_asks_us_to_stop_kills_us(tmp_path: Path) -> None:
    (tmp_path / "stop").write_text(str(time.time() + 20), encoding="ascii")
    ends = {"ORCH_DEADLINE": str(time.time() + 100)}

    assert float(run(ASKED_TWICE).stdout.split()[-1]) == math.inf
    assert 90 <= float(run(ASKED_TWICE, **ends).stdout.split()[-1]) <= 100
    assert 10 <= float(run(ASKED_TWICE, **ends, ORCH_STOP=str(tmp_path / "stop")).stdout.split()[-1]) <= 20


def test_a_stage_that_never_asks_is_interrupted_at_once() -> None:
    assert "before there was anything to save" in run(NEVER_ASKED).stderr


@pytest.mark.parametrize(("save_s", "left_s", "fits"), [(10, 17, True), (10, 15, False), (0, 1, True), (0, -1, False)])
def test_a_save_fits_if_there_is_half_as_much_time_again_as_the_slowest_took(
    save_s: float,
    left_s: float,
    fits: bool,  # noqa: FBT001 - a column of a table
) -> None:
    assert fits == (lacking_s(save_s, left_s) <= 0)


def test_without_a_deadline_every_save_fits() -> None:
    assert lacking_s(1e6, math.inf) <= 0


def test_the_measured_time_of_a_save_is_that_of_the_slowest_checkpoint_and_torn_ones_say_nothing(
    tmp_path: Path,
) -> None:
    for step, text in ((1, json.dumps({"save_s": 2.5})), (2, json.dumps({"save_s": 1.0})), (3, "{"), (4, "[]")):
        folder = tmp_path / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(text, encoding="utf-8")

    assert measured_save_s(tmp_path) == 2.5
    assert measured_save_s(tmp_path / "elsewhere") == 0
