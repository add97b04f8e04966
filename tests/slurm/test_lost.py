"""What Slurm's daemons said of one attempt is not held against the next."""

import time
from pathlib import Path

import pytest

from orchestrator.state import Attempt, StageState, write_state
from slurm.lost import lines_of

ENDED = 1_795_275_000.0


def attempt(number: int, started: float, ended: float | None) -> Attempt:
    return Attempt(number=number, launcher="t", job_id="7", nodes=("n1",), started=started, ended=ended)


def line(moment: float) -> str:
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(moment))
    return f"slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT {when} DUE TO JOB REQUEUE ***"


def said_of(folder: Path, moment: float, *, began: float) -> bool:
    """Tells whether a line of that moment is counted for the attempt after the one that ended at ENDED."""
    now = attempt(2, began, None)
    write_state(folder, StageState(state="running", attempts=(attempt(1, ENDED - 30, ENDED), now)))
    (folder / "slurm").mkdir()
    (folder / "slurm" / "7_0_log.err").write_text(f"{line(moment)}\n", encoding="utf-8")
    return any("JOB REQUEUE" in told for told in lines_of(folder, now))


@pytest.mark.parametrize(
    ("moment", "began", "counts"),
    [
        (ENDED, ENDED + 8, False),  # what put the job back into the queue
        (ENDED + 2, ENDED + 8, False),
        (ENDED + 20, ENDED + 8, True),
        (ENDED + 5, ENDED + 8, True),  # by a host whose clock is behind
        (ENDED + 1, ENDED + 120, False),
        (ENDED + 100, ENDED + 120, True),
    ],
)
def test_the_line_that_ended_an_attempt_does_not_end_the_next(
    tmp_path: Path, moment: float, began: float, *, counts: bool
) -> None:
    assert said_of(tmp_path, moment, began=began) is counts
