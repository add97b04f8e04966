"""Hands jobs to Slurm through submitit, and says what was wrong where Slurm would not take one."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError
from slurm.asking import SlurmAway, is_away, own_environment, said

if TYPE_CHECKING:
    from submitit import SlurmExecutor

    from slurm.job import StageJob

PATIENCE_S = 120  # sbatch repeats itself for as long as the controller is busy; a hung one is given up
KILLED_EXIT = 124  # of `timeout`
# what one process of a job tells another; a job that is submitted from inside a job must not inherit it
RANK_VARIABLES = frozenset({"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"})
FULL = re.compile(r"SubmitJob\w*Limit")  # AssocMaxSubmitJobLimit, QOSMaxSubmitJobPerUserLimit and their like
# Slurm's words -> the key that is to blame: of the cluster file, or of a stage
KEYS: tuple[tuple[str, str], ...] = (
    ("partition name", "partition"),
    ("invalid partition", "partition"),
    ("account or account/partition", "account"),
    ("invalid account", "account"),
    ("qos", "qos"),
    ("feature specification", "constraint"),
    ("generic resource", "gpu_flag, gpu_type"),
    ("node name", "exclude"),
    ("time limit", "max_hours"),
    ("memory", "memory_gb_per_node"),
    ("reservation", "extra.reservation"),
    ("node count specification", "max_nodes"),
    ("node configuration", "cpus_per_node, gpus_per_node, memory_gb_per_node"),
    ("unrecognized option", "extra"),
    ("access/permission", "partition, account"),
)


class QueueFull(SlurmAway):
    """This user has as many jobs in the queue as the site allows: later it will take more."""


class SubmissionRefused(InputError):
    """Slurm will not take a job; the message names the key that is to blame and holds Slurm's words."""


def send(folder: Path, parameters: Mapping[str, Any], python: str, work: "StageJob") -> str:
    """Submits the job of a stage, and returns its id.

    Raises SubmissionRefused if Slurm said no, QueueFull if it said not now, and SlurmAway if it said nothing: then the
    job may exist all the same, and is to be looked for by name.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if shutil.which("sbatch") is None:
        raise SlurmAway("there is no Slurm here: the command sbatch is not in PATH")
    complaint, before = io.StringIO(), {*folder.glob("*.sh"), *folder.glob("*.pkl")}
    try:
        with _quiet(complaint):
            executor = _executor(folder, parameters, python)
            return str(executor.submit(work).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        for left in {*folder.glob("*.sh"), *folder.glob("*.pkl")} - before:  # each look at a full queue would add some
            left.unlink()
        words = said(str(error)) or said(complaint.getvalue())
        if FULL.search(words):
            raise QueueFull(f"Slurm takes no more jobs of yours for now: sbatch: {words}") from None
        cause = error.__cause__
        gave_up = isinstance(cause, CalledProcessError) and cause.returncode == KILLED_EXIT
        if gave_up or is_away(words) or not words:
            raise SlurmAway(f"Slurm does not answer: sbatch: {words or f'no answer for {PATIENCE_S} s'}") from None
        raise SubmissionRefused(blamed(words)) from None


def text(folder: Path, parameters: Mapping[str, Any], python: str) -> str:
    """Returns the sbatch script as submitit renders it; nothing is written."""
    executor = _executor(folder, parameters, python)
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))  # noqa: SLF001 - no public way


def mend(folder: Path, job_id: str, work: "StageJob") -> None:
    """Puts what a job carries where it looks for it, if the launch that submitted it died just before it could."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    place = JobPaths(folder, job_id).submitted_pickle
    if not place.exists():
        draft = place.with_name(f".{place.name}.{os.getpid()}.draft")
        DelayedSubmission(work).dump(draft)
        draft.replace(place)


def carries(folder: Path, job_id: str) -> bool:
    """Tells whether a job had what it carries: without it, submitit waits a minute and fails."""
    return (folder / f"{job_id}_submitted.pkl").exists()


def blamed(words: str) -> str:
    """Puts the key of the cluster file before Slurm's words."""
    key = next((key for needle, key in KEYS if needle in words.lower()), None)
    return f"Slurm will not take it: {words}" + (f" (cluster file: {key})" if key else "")


def _executor(folder: Path, parameters: Mapping[str, Any], python: str) -> "SlurmExecutor":
    from submitit import SlurmExecutor

    class Executor(SlurmExecutor):
        """Gives an sbatch that hangs up for lost, for which submitit would wait for ever; renders without a Slurm."""

        @classmethod
        def affinity(cls) -> int:
            return 2

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            return ["timeout", str(PATIENCE_S), "sbatch", str(submission_file_path)]

    executor = Executor(folder=folder, python=python)
    executor.update_parameters(**parameters)
    return executor


@contextlib.contextmanager
def _quiet(complaint: io.StringIO) -> Iterator[None]:
    """Lets submitit see an environment without what a surrounding job left there, and keeps its complaints for us."""
    wanted = own_environment().keys() - RANK_VARIABLES - {"SLURM_TIME_FORMAT"}
    left_out = {name: value for name, value in os.environ.items() if name not in wanted}
    try:
        for name in left_out:
            del os.environ[name]
        with contextlib.redirect_stderr(complaint):
            yield
    finally:
        os.environ.update(left_out)
