"""What a keeper makes of surroundings in which no rank can ever start."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.notify import Notify
from orchestrator.state import read_launch, read_state, write_launch
from orchestrator.vigil import read_alerts
from slurm import submissions
from slurm.cluster import Cluster, write_cluster
from slurm.submissions import Submission
from tests.command_line import REPOSITORY
from tests.slurm.programs import Programs
from tests.slurm.toyslurm import toy_run

KEEP = """
import sys, pathlib, slurm.attempt, slurm.keeper as k
slurm.attempt.ASK_AGAIN_S = 0.1
{sabotage}
sys.exit(k.Keeper(pathlib.Path(sys.argv[1]), 'data', '0a').work())
"""
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost", "PYTHONPATH": str(REPOSITORY)}
AWAY = "srun: error: Unable to create step for job 7: Unable to contact slurm controller (connect failure)"


def keep(run: Path, sabotage: str = "", **programs: str) -> int:
    """Lets a keeper do its work as job 7, where there are no commands of Slurm but these."""
    there = Programs(run.parent / "bin")
    for name, text in programs.items():
        there.does(name, f"PATH=/usr/bin:/bin\n{text}")
    code = KEEP.format(sabotage=sabotage)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(run)], env={**os.environ, **JOB, "PATH": str(there.folder)}, check=False,
        timeout=60, capture_output=True,
    )  # fmt: skip
    return done.returncode


def prepared(folder: Path, token: str, **more: Any) -> Path:
    run = folder / "toy"
    launch = toy_run(run, {"data": []})
    path = run / "data" / "stage.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**document, "retry": {"attempts": 1}, **more}), encoding="utf-8")
    told = Notify(command=("/usr/bin/tee", "-a", str(folder / "heard")))
    write_cluster(run / "cluster.yaml", Cluster(name="toy", ledger=folder / "ledger", notify=told))
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


def heard(folder: Path) -> list[str]:
    """Lists what people were told."""
    words = (folder / "heard").read_text(encoding="utf-8").replace("}{", "}\n{") if (folder / "heard").exists() else ""
    return [json.loads(line)["event"] for line in words.splitlines()]


def test_a_keeper_judges_the_rules_of_the_recipe_and_tells_whom_the_cluster_names(tmp_path: Path) -> None:
    run = prepared(tmp_path, "0a", alerts={"goodput_under": 0.5, "loss_nan": None})

    keep(run, srun="sleep 1; echo 'srun: error: no'; exit 2")

    (told,) = read_alerts(run / "data")
    assert (told["rule"], told["state"], told["attempt"], told["threshold"]) == ("goodput_under", "begun", 1, 0.5)
    assert sorted(heard(tmp_path)) == ["alert", "failed"]


def test_a_slurm_that_does_not_answer_when_ranks_are_to_start_is_waited_for(tmp_path: Path) -> None:
    run = prepared(tmp_path, "0a")
    tries = f"echo x >> {tmp_path}/tries; test $(wc -l < {tmp_path}/tries) -gt 3"

    keep(run, srun=f'{tries} || {{ echo "{AWAY}"; exit 1; }}; echo "srun: error: now it is refused"; exit 2')

    (only,) = read_state(run / "data").attempts
    assert "now it is refused" in only.detail
    assert (tmp_path / "tries").read_text(encoding="ascii").count("x") == 4


@pytest.mark.parametrize(
    "words",
    [
        "srun: error: Task launch for StepId=7.0 failed on node n2: Socket timed out on send/recv operation",
        f"{AWAY}' > {{logs}}/rank_0.log; echo '{AWAY}",  # a rank had begun
    ],
)
def test_what_is_not_slurms_silence_is_an_attempt(tmp_path: Path, words: str) -> None:
    run = prepared(tmp_path, "0a")
    logs = run / "data" / "logs" / "attempt_1"

    keep(run, srun=f"echo x >> {tmp_path}/tries; echo '{words.format(logs=logs)}'; exit 1")

    assert len(read_state(run / "data").attempts) == 1
    assert (tmp_path / "tries").read_text(encoding="ascii").count("x") == 1


def test_an_srun_that_never_starts_a_rank_is_ended(tmp_path: Path) -> None:
    run = prepared(tmp_path, "0a", watch={"start_s": 0.5})

    keep(
        run, srun="echo 'srun: Step creation temporarily disabled, retrying (Requested nodes are busy)'; exec sleep 60"
    )

    (only,) = read_state(run / "data").attempts
    assert "Requested nodes are busy" in only.detail
    assert (only.state, only.cause) == ("failed", "communication")


@pytest.mark.parametrize("where", ["environment_of_ranks", "open_attempt", "reopen_cluster"])
def test_a_keeper_with_a_fault_of_its_own_ends_its_attempt_and_somebody_hears_of_it(tmp_path: Path, where: str) -> None:
    run = prepared(tmp_path, "0a")

    assert keep(run, f"k.{where} = lambda *_, **__: 1 / 0") == 3

    state = read_state(run / "data")
    (only,) = state.attempts
    assert (state.state, only.cause, only.ended is None) == ("failed", "code_error", False)
    assert only.detail == "its keeper broke: ZeroDivisionError: division by zero"
    assert heard(tmp_path) == ["needs_human"]


def test_a_keeper_that_cannot_queue_its_stage_again_says_so_to_somebody(tmp_path: Path) -> None:
    run = prepared(tmp_path, "0a", retry={"attempts": 3, "delay_s": 1000, "disk_delay_s": 1000, "most_delay_s": 1000})
    notify = {"command": ["/usr/bin/tee", "-a", str(tmp_path / "heard")]}
    launch = read_launch(run)
    assert launch is not None
    write_launch(run, replace(launch, notify=notify))

    assert keep(run, "import slurm.again\nslurm.again.queue_again = lambda *_: 1 / 0", srun="exit 1") == 3

    state = read_state(run / "data")
    assert (state.state, state.attempts[-1].decision[:5]) == ("queued", "again")  # whoever looks next sends it again
    assert heard(tmp_path) == ["needs_human"]


@pytest.mark.parametrize("change", [{"token": "0c"}, {"begun": 2}])
def test_a_keeper_whose_stage_has_another_one_leaves_and_touches_nothing(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    run = prepared(tmp_path, "0a")
    path = run / "data" / "slurm" / "submission.json"
    replaced = (
        "import json,pathlib; p = pathlib.Path('{}'); p.write_text(json.dumps({{**json.loads(p.read_bytes()), **{}}}))"
    )

    assert keep(run, srun=f'{sys.executable} -c "{replaced.format(path, change)}"; exit 1') == 1

    state = read_state(run / "data")
    assert (state.state, [attempt.ended for attempt in state.attempts]) == ("running", [None])
    assert heard(tmp_path) == []


def test_a_job_that_is_not_wanted_touches_nothing(tmp_path: Path) -> None:
    run = prepared(tmp_path, "0b")

    assert keep(run) == 1
    assert read_state(run / "data").attempts == ()
    assert (found := submissions.read_submission(run / "data")) is not None
    assert found.state == "intent"
    assert (launch := read_launch(run)) is not None
    assert launch.ended is None
