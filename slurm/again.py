"""Puts a stage into the queue again: under its job's own id, or, where Slurm refuses that, as a new job."""

import logging
import time
from pathlib import Path

from orchestrator.resources import Resources
from orchestrator.retry import Decision
from orchestrator.state import read_launch, read_plain_stage
from slurm import queue, submissions
from slurm.asking import SlurmAway, SlurmRefused
from slurm.attempt import Allocation, Standing, described
from slurm.cluster import Cluster
from slurm.hostlist import expand

LOCK_TRIES, BETWEEN_TRIES_S = 20, 0.5
AWAY_S = 900.0  # in which a controller is restarted, or another takes over

log = logging.getLogger(__name__)


def queue_again(
    run: Path, stage: str, decision: Decision, cluster: Cluster, allocation: Allocation, now: Standing
) -> None:
    """Sees to it that the stage is begun again once this job has ended, on other nodes if the decision says so.

    Followers that wait for this job (`afterok`) go on waiting: for its id if it is queued again under it, else for the
    new one.
    """
    try:
        if not now.requeued:
            _requeue(allocation)
    except (SlurmRefused, SlurmAway) as error:
        log.warning("job %s cannot be queued again (%s): the stage gets a new job", allocation.job_id, error)
        _submit_anew(run, stage, decision, cluster)
        return
    log.info("job %s waits again under its own id", allocation.job_id)
    if decision.exclude:
        _leave_out(run / stage, decision, cluster, allocation)


def _requeue(allocation: Allocation) -> None:
    """Waits for a controller that is away as long as there is time: followers would be lost with this job."""
    left_s = allocation.left_s()
    until = time.monotonic() + (AWAY_S if left_s is None else min(AWAY_S, left_s))
    while True:
        try:
            return queue.requeue(allocation.job_id)
        except SlurmAway as away:
            if time.monotonic() > until:
                raise
            log.warning("%s", away)
            time.sleep(BETWEEN_TRIES_S)


def _leave_out(stage: Path, decision: Decision, cluster: Cluster, allocation: Allocation) -> None:
    from slurm.nodes import bad_nodes, enough_without

    found = submissions.read_submission(stage)
    resources = Resources(**read_plain_stage(stage)["resources"])
    before = expand(described(allocation.job_id).get("ExcNodeList", ""))  # by this and by earlier attempts
    known = {*before, *cluster.exclude, *bad_nodes(cluster, resources), *(found.exclude if found else ())}
    wanted = next(
        (some for some in (known.union(decision.exclude), {*cluster.exclude, *decision.exclude})
         if enough_without(cluster, resources, some)), None,
    )  # fmt: skip
    if wanted is None:  # it would wait for ever
        log.warning("%s cannot be left out: too few nodes would remain", ", ".join(decision.exclude))
        return
    try:
        queue.set_exclude(allocation.job_id, wanted)
    except (SlurmRefused, SlurmAway) as error:
        log.warning("%s cannot be left out: %s", ", ".join(decision.exclude), error)


def _submit_anew(run: Path, stage: str, decision: Decision, cluster: Cluster) -> None:
    """Asks for a new job, and lets those that wait for this one wait for that, before this one ends."""
    from orchestrator.errors import RunBusy
    from orchestrator.run import Run
    from slurm.chain import Chain
    from slurm.controller import Controller
    from slurm.settling import Settler

    launch = read_launch(run)
    for left in reversed(range(LOCK_TRIES)):
        try:
            lock = Run(run).lock("orch keeper")
            break
        except RunBusy:
            if not left:
                raise
            time.sleep(BETWEEN_TRIES_S)
    with lock:
        if launch is None:
            return
        slurm = Controller(cluster)
        Chain(run, launch, slurm).send(stage, submissions.read_submission(run / stage), decision)
        Settler(Chain(run, launch, slurm), grace_s=cluster.grace_s).settle()
