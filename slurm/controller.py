"""Slurm itself, as a chain needs it: jobs by submitit, questions and wishes by its commands."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.notify import tell_failure
from orchestrator.progress import read_progress
from orchestrator.resources import Resources
from orchestrator.stopping import measured_save_s
from slurm import queue, sbatch
from slurm.cluster import Cluster
from slurm.nodes import UNFIT, bad_nodes, blame, enough_without
from slurm.queue import Estimate, JobFacts, Survey
from slurm.request import keeper_python, sbatch_parameters, signal_seconds
from slurm.submissions import Submission, folder_of

if TYPE_CHECKING:
    from slurm.job import StageJob


class Controller:
    """The Slurm of one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        """Takes the cluster's own facts; nothing is asked yet."""
        self._cluster = cluster
        self._bad: dict[tuple[int, bool], tuple[str, ...]] = {}  # by how many nodes are wanted, and whether with GPUs

    def find(self, names: Sequence[str], *, since: float, uid: int) -> Survey:
        """Says what is known of a user's jobs by name that were submitted since then."""
        return queue.find(names, since=since, uid=uid)

    def last_ending(self, facts: JobFacts) -> JobFacts:
        """Says how a job that waits again ended before; what is given where accounting does not know."""
        return queue.last_ending(facts)

    def signal_s(self, stage: Path, resources: Resources) -> int:
        """Says how long before the end of its time a stage wants to be told, from what saves and steps took so far."""
        save_s = measured_save_s(stage) or None
        return signal_seconds(self._cluster, resources, save_s=save_s, step_s=_measured_step_s(stage))

    def bad_nodes(self, resources: Resources) -> Sequence[str]:
        """Lists the nodes to leave out; the ledger is read once, for all stages alike."""
        kind = (resources.nodes, resources.gpus_per_node > 0)
        if kind not in self._bad:
            self._bad[kind] = bad_nodes(self._cluster, resources)
        return self._bad[kind]

    def left_out(self, resources: Resources, besides: Sequence[str]) -> Sequence[str]:
        """Lists the nodes to leave out: bad ones and, besides, these, as far as enough others remain."""
        bad = self.bad_nodes(resources)
        for wanted in ({*bad, *besides}, {*besides}) if besides else ():
            if enough_without(self._cluster, resources, {*self._cluster.exclude, *wanted}):
                return sorted(wanted)
        return bad

    def blame(self, node: str, detail: str, *, run: str) -> None:
        """Notes, once, that jobs cannot begin on a node."""
        blame(self._cluster, node, UNFIT, detail, run=run, once=True)

    def tell_failure(self, stage: Path) -> None:
        """Tells whoever wants to know that a stage ended for good without being done."""
        tell_failure(stage.parent, stage.name, others=(self._cluster.notify,)).wait()

    def test_only(self, stage: Path, resources: Resources) -> Estimate:
        """Asks whether Slurm would take the job of a stage, and when it would begin; nothing is submitted."""
        parameters = sbatch_parameters(
            self._cluster, resources, name="orch-plan", run=stage.parent, exclude=self.bad_nodes(resources),
            signal_s=self.signal_s(stage, resources),
        )  # fmt: skip
        return queue.test_only(sbatch.text(folder_of(stage), parameters, keeper_python(self._cluster)))

    def submit(self, stage: Path, submission: Submission, resources: Resources, delay_s: float) -> str:
        """Hands over the job of a stage and returns its id."""
        parameters = dict(self._parameters(stage, submission, resources))
        if delay_s >= 1:
            flags = {**parameters["additional_parameters"], "begin": f"now+{int(delay_s)}"}
            parameters["additional_parameters"] = flags
        return sbatch.send(folder_of(stage), parameters, keeper_python(self._cluster), _work(stage, submission))

    def mend(self, stage: Path, submission: Submission, job_id: str) -> None:
        """Gives a job what it carries, if whoever submitted it was killed before it could."""
        sbatch.mend(folder_of(stage), job_id, _work(stage, submission))

    def set_dependency(self, job_id: str, after: Sequence[str]) -> None:
        """Lets a waiting job wait for these."""
        queue.set_dependency(job_id, after)

    def cancel(self, job_ids: Sequence[str], *, signal: str | None = None) -> None:
        """Ends jobs, or only sends them a signal."""
        queue.cancel(job_ids, signal=signal)

    def _parameters(self, stage: Path, submission: Submission, resources: Resources) -> Mapping[str, Any]:
        return sbatch_parameters(
            self._cluster, resources, name=submission.name, run=stage.parent, after=submission.after_ids,
            exclude=submission.exclude, signal_s=submission.signal_s,
        )  # fmt: skip


def _measured_step_s(stage: Path) -> float | None:
    """Returns how long a step took when the stage last ran; None for one that never did, or counts no steps."""
    progress = read_progress(stage) or {}
    rate = progress.get("rate_per_s") if progress.get("unit") == "step" else None
    return 1.0 / rate if rate else None


def _work(stage: Path, submission: Submission) -> "StageJob":
    from slurm.job import StageJob  # which settles too, through the launcher

    return StageJob(run=str(stage.parent), stage=stage.name, token=submission.token)
