"""What a job knows of its own time, whoever tells it."""

import pytest

from slurm.attempt import Allocation, limit_in, seconds
from tests.slurm.programs import Programs


@pytest.mark.parametrize(
    ("text", "expected"), [("00:01:00", 60.0), ("1-02:03:04", 93784.0), ("UNLIMITED", None), ("", None)]
)
def test_a_duration_as_scontrol_writes_it(text: str, expected: float | None) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_JOB_START_TIME": "1795272550", "SLURM_JOB_END_TIME": "1795276150"}, 3600.0),
        ({"SLURM_JOB_START_TIME": "1795272550", "SLURM_JOB_END_TIME": "3795276150"}, None),
        ({"SLURM_JOB_START_TIME": "1795272550"}, None),
        ({}, None),
    ],
)
def test_the_limit_in_the_environment(environment: dict[str, str], expected: float | None) -> None:
    assert limit_in(environment) == expected


@pytest.mark.parametrize(
    ("answer", "left_s"),
    [
        ("echo JobId=7 JobState=RUNNING RunTime=00:10:00 TimeLimit=01:00:00", 3000.0),  # a long prolog counts
        ("echo JobId=7 RunTime=00:00:00 TimeLimit=UNLIMITED", None),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", 3600.0),  # the environment says when it ends
    ],
)
def test_the_time_that_is_left(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, answer: str, left_s: float | None
) -> None:
    programs.does("scontrol", answer)
    told = {"JOB_ID": "7", "JOB_NODELIST": "n[1-2]", "JOB_START_TIME": "1795272550", "JOB_END_TIME": "1795276150"}
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", value)

    allocation = Allocation.from_environment()

    assert allocation.nodes == ("n1", "n2")
    assert allocation.left_s() == (None if left_s is None else pytest.approx(left_s, abs=30))
