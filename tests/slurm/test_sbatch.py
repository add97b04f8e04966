"""What becomes of a job that sbatch takes, will not take, or will not take now."""

from pathlib import Path

import pytest

from orchestrator.state import Ending, close_attempt, open_attempt, read_launch
from slurm import sbatch, submissions
from slurm.cluster import Cluster, write_cluster
from slurm.company import Company
from slurm.job import StageJob
from slurm.sbatch import QueueFull, SubmissionRefused
from tests.slurm.programs import Programs
from tests.slurm.toyslurm import toy_run

LIMIT = "sbatch: error: QOSMaxSubmitJobPerUserLimit"
POLICY = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, ...)"


@pytest.fixture(autouse=True)
def srun(programs: Programs) -> None:
    programs.does("srun", "exit 1")  # it only has to be there


def send(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    return sbatch.send(folder, {"time": 5}, "python", StageJob(run="run", stage="stage", token=""))


def test_a_full_queue_is_no_refusal_and_leaves_nothing_behind(tmp_path: Path, programs: Programs) -> None:
    programs.does("sbatch", f"echo '{LIMIT}' >&2; echo '{POLICY}' >&2; exit 1")

    with pytest.raises(QueueFull, match="no more jobs"):
        send(tmp_path / "slurm")

    assert list((tmp_path / "slurm").iterdir()) == []


def test_a_job_that_is_too_big_for_its_account_is_refused_for_good(tmp_path: Path, programs: Programs) -> None:
    programs.does("sbatch", f"echo 'sbatch: error: AssocMaxWallDurationPerJobLimit' >&2; echo '{POLICY}' >&2; exit 1")

    with pytest.raises(SubmissionRefused):
        send(tmp_path / "slurm")


def test_a_job_that_ends_well_submits_what_its_launch_did_not_come_to(tmp_path: Path, programs: Programs) -> None:
    programs.does("sbatch", "echo Submitted batch job 77")
    programs.does("squeue", "exit 0")
    programs.does("sacct", "exit 0")
    run, cluster = tmp_path / "toy", Cluster(name="toy", ledger=tmp_path / "ledger")
    launch = toy_run(run, {"data": [], "train": ["data"], "score": ["train"]})
    write_cluster(run / "cluster.yaml", cluster)
    open_attempt(run / "data", launcher="toy", job_id="1", nodes=("n1",))
    close_attempt(run / "data", Ending(state="done"))

    Company(run, "data", cluster).end(done=True)

    found = submissions.read_submission(run / "train")
    assert found is not None
    assert (found.job_id, found.launch) == ("77", launch.started)
    assert (after := read_launch(run)) is not None
    assert after.ended is None
