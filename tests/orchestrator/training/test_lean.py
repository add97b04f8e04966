"""What a rank loads before it can begin."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.needs("torch")


def said_by(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.splitlines()[-1]


def test_deepspeed_comes_without_mlflow_which_a_stage_may_still_load() -> None:
    code = "import sys; import orchestrator.training.deepspeed; loaded = 'mlflow' in sys.modules"

    assert said_by(f"{code}; import mlflow; print(loaded, mlflow.__name__)") == "False mlflow"


def test_an_mlflow_that_is_there_already_stays() -> None:
    code = "import sys, mlflow; import orchestrator.training.lean"

    assert said_by(f"{code}; print(sys.modules['mlflow'] is mlflow)") == "True"
