"""What Slurm's daemons said of one attempt is not held against the next."""

from pathlib import Path

import pytest

from orchestrator.state import Attempt
from slurm.attempt import BEGINS
from slurm.lost import lines_of

SAID = "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT {when} DUE TO {why} ***"
NOON = "2026-11-21T12:00:00"


def attempt(number: int) -> Attempt:
    return Attempt(number=number, launcher="t", job_id="7", nodes=("n1",), started=float(number))


def begins(number: int) -> str:
    return f"2026-11-21 03:00:00,000 keeper INFO: {BEGINS.format(number=number)}: job 7 on n1"


@pytest.mark.parametrize("noise", [0, 2000])
def test_what_was_said_between_two_beginnings_belongs_to_the_first_whatever_the_clocks_say(
    tmp_path: Path, noise: int
) -> None:
    (tmp_path / "slurm").mkdir()
    reasons = {1: "PREEMPTION", 2: "JOB REQUEUE", 11: "TIME LIMIT"}
    lines = ["a site's prolog"]
    for number, why in reasons.items():
        lines += [begins(number), *["a word of the keeper" * 3] * noise, SAID.format(when=NOON, why=why)]
    (tmp_path / "slurm" / "7_0_log.err").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "slurm" / "8_0_log.err").write_text(SAID.format(when=NOON, why="of another job"), encoding="utf-8")
    last = 1 if noise == 0 else 11  # the others are out of sight

    for number, why in reasons.items():
        if number >= last:
            said = [line for line in lines_of(tmp_path, attempt(number)) if "***" in line]
            assert said == [SAID.format(when=NOON, why=why)]


def test_where_the_keeper_could_not_write_all_counts(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "7_0_log.err").write_text(SAID.format(when=NOON, why="TIME LIMIT"), encoding="utf-8")

    assert len(lines_of(tmp_path, attempt(1))) == 1
    assert lines_of(tmp_path / "nowhere", attempt(1)) == []
