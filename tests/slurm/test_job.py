"""What a submission carries, and what it costs to begin."""

import pickle
import subprocess
import sys

import pytest

from slurm.job import StageJob
from tests.command_line import REPOSITORY

HEAVY = ("torch", "deepspeed", "mlflow", "webdataset", "omegaconf", "rich", "typer", "submitit", "numpy")


def test_a_job_survives_being_pickled_and_asks_slurm_for_itself_again() -> None:
    job = StageJob(run="/runs/a b", stage="first", token="0123abcd")  # noqa: S106 - no secret

    again = pickle.loads(pickle.dumps(job))  # noqa: S301 - our own
    assert vars(again) == {"run": "/runs/a b", "stage": "first", "token": "0123abcd"}
    assert vars(again.checkpoint().function) == vars(job)


@pytest.mark.parametrize("module", ["slurm.keeper", "slurm.task", "slurm.warden"])
def test_between_two_stages_nothing_is_imported_that_takes_its_time(module: str) -> None:
    found = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", found], cwd=REPOSITORY, text=True, capture_output=True, check=True)

    assert done.stdout.split() == []


def test_where_slurm_does_not_answer_nothing_is_known_of_a_job() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from slurm.attempt import described; print(described('1'))"], cwd=REPOSITORY, text=True,
        env={"PATH": "/nowhere", "PYTHONPATH": str(REPOSITORY)}, capture_output=True, check=True,
    )  # fmt: skip

    assert done.stdout.strip() == "{}"
