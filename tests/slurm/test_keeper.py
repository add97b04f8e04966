"""What a keeper makes of surroundings in which no rank can ever start."""

import json
import os
import subprocess
import sys
from pathlib import Path

from orchestrator.state import read_launch, read_state
from slurm import submissions
from slurm.cluster import Cluster, write_cluster
from slurm.submissions import Submission
from tests.command_line import REPOSITORY
from tests.slurm.toyslurm import toy_run

KEEP = "import sys, pathlib, slurm.keeper as k; sys.exit(k.Keeper(pathlib.Path(sys.argv[1]), 'data', '0a').work())"
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "PYTHONPATH": str(REPOSITORY), "PATH": "/nowhere"}


def keep(run: Path) -> int:
    """Lets a keeper do its work as job 7, where there is not one of Slurm's commands."""
    environment = {**os.environ, **JOB}
    done = subprocess.run(
        [sys.executable, "-P", "-c", KEEP, str(run)], env=environment, check=False, timeout=60, capture_output=True
    )
    return done.returncode


def prepared(folder: Path, token: str) -> Path:
    run = folder / "toy"
    launch = toy_run(run, {"data": []})
    path = run / "data" / "stage.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**document, "retry": {"attempts": 1}}), encoding="utf-8")
    write_cluster(run / "cluster.yaml", Cluster(name="toy", ledger=folder / "ledger"))
    submissions.make_folder(run / "data")
    wanted = Submission(token=token, name=f"orch-toy-data-{token}", launch=launch.started, job_id="7")
    assert submissions.intend(run / "data", wanted, instead_of=None)
    return run


def test_an_attempt_whose_ranks_cannot_be_started_ends_with_the_reason(tmp_path: Path) -> None:
    run = prepared(tmp_path, "0a")

    code = keep(run)

    state = read_state(run / "data")
    (only,) = state.attempts
    assert code == 1
    assert (state.state, only.state, only.cause, only.ended is None) == ("failed", "failed", "unknown", False)
    assert "srun" in only.detail
    assert only.decision.startswith("not again")


def test_a_job_that_is_not_wanted_touches_nothing(tmp_path: Path) -> None:
    run = prepared(tmp_path, "0b")

    assert keep(run) == 1
    assert read_state(run / "data").attempts == ()
    assert (found := submissions.read_submission(run / "data")) is not None
    assert found.state == "intent"
    assert (launch := read_launch(run)) is not None
    assert launch.ended is None
