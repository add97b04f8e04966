"""`orch doctor --on CLUSTER`: what it finds out about a Slurm, here one of shell scripts."""

from pathlib import Path

import pytest

from orchestrator.doctor.findings import Finding
from slurm.cluster import Cluster
from slurm.launcher import SlurmLauncher
from tests.slurm.programs import Programs

CONFIG = (
    "Configuration data as of 2026-11-22", "AccountingStorageType   = accounting_storage/slurmdbd",
    "ClusterName             = toy", "KillWait                = 30 sec", "MinJobAge               = 300 sec",
    "RequeueExit             = (null)", "SLURM_VERSION           = 25.05.1",
)  # fmt: skip
PARTITION = "PartitionName=main Default=YES GraceTime={grace} PreemptMode={mode} State={state}"


@pytest.fixture
def a_slurm(programs: Programs) -> Programs:
    """Gives a Slurm that takes every job."""
    for name in ("squeue", "scancel", "sinfo", "srun", "sacct"):
        programs.say(name)
    programs.say("sbatch", "sbatch: Job 7 to start at 2026-11-22T09:00:00 using 1 processors on nodes n1")
    answers(programs)
    return programs


def answers(programs: Programs, *changed: str, grace: int = 60, mode: str = "REQUEUE", state: str = "UP") -> None:
    """Lets scontrol tell of a configuration, some lines of which are others."""
    others = {line.partition("=")[0].strip(): line for line in changed}
    lines = [others.pop(line.partition("=")[0].strip(), line) for line in CONFIG]
    config = "\n".join([*lines, *others.values()])
    partition = PARTITION.format(grace=grace, mode=mode, state=state)
    programs.does("scontrol", f'case "$2" in config) echo "{config}";; *) echo "{partition}";; esac')


def examined(tmp_path: Path, cluster: Cluster | None = None) -> dict[str, Finding]:
    found = cluster or Cluster(name="toy", ledger=tmp_path / "ledger.jsonl")
    return {finding.about: finding for finding in SlurmLauncher(found).examine(tmp_path / "runs")}


def test_a_slurm_that_takes_our_jobs_is_fine(a_slurm: Programs, tmp_path: Path) -> None:
    found = examined(tmp_path)

    assert {finding.about for finding in found.values() if finding.level != "ok"} <= {"shared folder"}
    assert found["Slurm"].message == "25.05.1 of toy answers"
    assert found["a job without GPUs"].message == "Slurm's default partition would take it"
    assert a_slurm.calls("sbatch") == ["--test-only"]  # nothing is submitted
    assert not (tmp_path / "runs").exists()


def test_without_slurm_that_is_all_there_is_to_say(
    tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(programs.folder))

    (finding,) = examined(tmp_path).values()

    assert finding.level == "fault"
    assert "sbatch" in finding.message
    assert "module" in finding.remedy


def test_a_controller_that_is_away_is_a_fault(a_slurm: Programs, tmp_path: Path) -> None:
    a_slurm.does("scontrol", "echo 'scontrol: error: Invalid user id' >&2; exit 1")

    (finding,) = examined(tmp_path).values()

    assert (finding.level, finding.message) == ("fault", "scontrol: Invalid user id")


def test_a_job_that_slurm_would_not_take_names_the_key(a_slurm: Programs, tmp_path: Path) -> None:
    refusal = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    a_slurm.does("sbatch", f"echo '{refusal}' >&2; exit 1")

    finding = examined(tmp_path)["a job without GPUs"]

    assert finding.level == "fault"
    assert "(cluster file: account)" in finding.message


def test_gpus_are_asked_for_where_the_cluster_has_some(a_slurm: Programs, tmp_path: Path) -> None:
    cluster = Cluster(name="toy", gpus_per_node=8, ledger=tmp_path / "ledger.jsonl")

    assert examined(tmp_path, cluster)["a job of one GPU"].level == "ok"


@pytest.mark.parametrize(
    ("changed", "about", "words"),
    [
        ("AccountingStorageType = (null)", "accounting", "there is none"),
        ("KillWait = 5 sec", "KillWait", "set grace_s: 5"),
        ("MinJobAge = 2 sec", "MinJobAge", "300 s or more"),
        ("MaxBatchRequeue = 5", "MaxBatchRequeue", "ask for 100"),
        ("RequeueExit = 2-4", "RequeueExit", "leave these out"),
    ],
)
def test_what_would_cost_jobs_something_is_told(
    changed: str, about: str, words: str, a_slurm: Programs, tmp_path: Path
) -> None:
    answers(a_slurm, changed)

    finding = examined(tmp_path)[about]

    assert finding.level == "warning"
    assert words in f"{finding.message}; {finding.remedy}"


def test_a_partition_that_kills_preempted_jobs_at_once_is_told(a_slurm: Programs, tmp_path: Path) -> None:
    answers(a_slurm, grace=0)

    finding = examined(tmp_path)["preemption"]

    assert finding.level == "warning"
    assert "0 s to save" in finding.message


def test_a_partition_that_preempts_nobody_needs_no_grace(a_slurm: Programs, tmp_path: Path) -> None:
    answers(a_slurm, grace=0, mode="OFF")

    assert "preemption" not in examined(tmp_path)


def test_a_partition_that_starts_nothing_is_told(a_slurm: Programs, tmp_path: Path) -> None:
    answers(a_slurm, state="DRAIN")

    assert "is DRAIN" in examined(tmp_path)["a job without GPUs"].message
