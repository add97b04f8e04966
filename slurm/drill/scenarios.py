"""The scenarios: what is done to a run, which cause must be named for it, and how the result is judged."""

import json
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.causes import Cause
from orchestrator.records import record
from slurm.drill import faults
from slurm.drill.field import DrillFailed, Field
from slurm.drill.recipe import RANKS, TRAIN, Shape

BOOT_S = 15.0  # a host that lost power is back after so long; Slurm calls it down after 10 s
# what a launch writes, in its order: it is killed as soon as each is there, and called again
LAUNCHER_WRITES = ("lock", "plan.json", "data/slurm/submission.json", "train/slurm/submission.json")


@record
class Scenario:
    """One thing that happens to a run."""

    name: str
    what: str  # in words, for the table
    act: Callable[[Field], None]  # launches the run and does the harm; the run may still be under way afterwards
    causes: frozenset[Cause] = frozenset()  # of the attempts that end early; empty = no attempt may
    shape: Shape = Shape()
    quick: bool = False
    small_disk: bool = False  # the run folder lies on a disk that can be filled
    tracked: bool = False  # by an MLflow server of its own
    damages: bool = False  # samples are lost for good: named ones, and no others


def rank_killed(field: Field) -> None:
    """Kills one training process in the middle of an interval between checkpoints."""
    field.launch()
    field.wait_for_step(10)
    faults.kill_rank(field, 1)


def host_killed(field: Field) -> None:
    """Pulls the plug of a host on which a rank trains, not the one of the batch script."""
    field.launch()
    field.wait_for_step(10)
    keeper = field.keeper_host()
    victims = [host for rank in range(RANKS) if (host := field.host_of(rank)) != keeper]
    faults.kill_hosts(field, victims[:1], back_after_s=BOOT_S)


def keeper_host_killed(field: Field) -> None:
    """Pulls the plug of the host on which the batch script runs."""
    field.launch()
    field.wait_for_step(10)
    faults.kill_hosts(field, [field.keeper_host()], back_after_s=BOOT_S)


def all_hosts_killed(field: Field) -> None:
    """Pulls the plug of every host."""
    field.launch()
    field.wait_for_step(10)
    faults.kill_hosts(field, field.cluster.hosts, back_after_s=BOOT_S)


def preempted(field: Field) -> None:
    """Lets a job of the urgent partition have every host for a few seconds."""
    field.launch()
    field.wait_for_step(10)
    faults.urgent_job(field, seconds=5)


def time_limit(field: Field) -> None:
    """Asks for less time than the training needs."""
    field.launch()
    field.wait(lambda: _ended_attempts(field), "the end of the attempt whose time was short", 400)
    field.harm()


def slurmctld_restarted(field: Field) -> None:
    """Kills slurmctld while the training runs, and starts it again after the training has ended."""
    field.launch()
    field.wait_for_step(4)
    field.harm()
    field.cluster.stop_controller()
    field.orch("status", str(field.run), codes=(0, 3))
    field.wait_for_step(field.shape.steps)
    time.sleep(1)  # the keeper is on its way out
    field.cluster.start_controller()


def slurmdbd_down(field: Field) -> None:
    """Does without accounting from before the launch to after the end."""
    field.cluster.stop_accounting()
    try:
        field.harm()
        field.launch()
        field.wait_for_step(10)
        faults.kill_rank(field, 2)
        field.wait_until_over()
    finally:
        field.cluster.start_accounting()


def mlflow_down(field: Field) -> None:
    """Kills the MLflow server in the middle; `orch sync` tells it the rest afterwards."""
    server = field.server
    if server is None:
        raise DrillFailed("there is no MLflow server to kill")
    field.launch()
    field.wait_for_step(6)
    field.harm()
    server.kill()
    field.wait_until_over()
    server.start()
    field.orch("sync", str(field.run))
    field.orch("sync", str(field.run))  # a second time: nothing may be told twice
    with sqlite3.connect(server.database) as store:
        rows = store.execute("select step, value from metrics where key = 'loss' order by step").fetchall()
    want = sorted((number, step.loss) for number, step in field.trace().final().items())
    if sorted(map(tuple, rows)) != want:
        field.notes.append(f"MLflow has {len(rows)} points of the loss, not the {len(want)} of the journal")


def disk_full(field: Field) -> None:
    """Fills the disk of the run folder until an attempt has failed of it; frees it, and resumes."""
    field.launch()
    field.wait_for_step(6)
    field.harm()
    with faults.full_disk(field.run.parent):
        field.wait(lambda: _ended_attempts(field), "the end of the attempt on the full disk")
        shown = field.status()
    if shown["state"] == "done":
        field.notes.append("orch status says that the run is done, on a full disk")
    if field.status()["state"] == "failed":
        field.orch("resume", str(field.run), "--detach")


def rank_hung(field: Field) -> None:
    """Stops one training process for good, without ending it."""
    field.launch()
    field.wait_for_step(10)
    pid = field.workers()[1]
    faults.kill_rank(field, 1, number=signal.SIGSTOP)
    field.wait(lambda: _ended_attempts(field), "the end of the attempt with the hung rank", 200)
    if Path(f"/proc/{pid}").exists():
        field.notes.append(f"the hung process {pid} is still there")
    evidence = json.dumps(field.status())
    if "rank 1" not in evidence:
        field.notes.append("orch status does not name rank 1, which hung")


def checkpoint_corrupted(field: Field) -> None:
    """Changes bytes of the newest checkpoint, and kills a rank before the next one is saved."""
    field.launch()
    saved = field.checkpoint(2 * field.shape.save_every)
    field.wait((saved / "manifest.json").is_file, f"the checkpoint {saved.name}")
    largest = max((saved / "weights").glob("*.distcp"), key=lambda path: path.stat().st_size)
    faults.flip_bytes(largest)
    faults.kill_rank(field, 0)
    field.wait(lambda: len(field.trace().attempts) > 1, "the next attempt")
    field.wait(lambda: field.trace().attempts[-1].ended is not None, "its end")
    logs = "".join(path.read_text(errors="replace") for path in (field.run / TRAIN / "logs").rglob("rank_*.log"))
    said = [line for line in logs.splitlines() if saved.name in line and "passing over" in line]
    if not said:
        field.notes.append(f"nobody said that {saved.name} was passed over")
    redone = [step.number for step in field.trace().steps if step.attempt > 1]
    if redone and min(redone) != field.shape.save_every + 1:
        field.notes.append(f"it went on at step {min(redone)}, not from the checkpoint before the corrupted one")


def tar_corrupted(field: Field) -> None:
    """Changes bytes of a tar after it was written and before the training reads it; kills a rank later on."""
    field.launch()
    shards = field.run / "data" / "shards"
    field.wait((shards / "manifest.json").is_file, "the data")
    faults.flip_bytes(sorted(shards.glob("*.tar"))[1], after=b'"inputs"')
    field.wait_for_step(10)
    faults.kill_rank(field, 1)


def launcher_killed(field: Field) -> None:
    """Kills `orch launch` at several moments, and calls it again each time."""
    for written in LAUNCHER_WRITES:
        launcher = field.start_launching()
        while launcher.poll() is None and not (field.run / written).exists():
            time.sleep(0.002)
        launcher.kill()
        launcher.wait()
    field.harm()
    done = field.start_launching()
    if done.wait(timeout=60) not in {0, 3}:  # 3: somebody works on the run already
        raise DrillFailed(f"the last launch ended with exit code {done.returncode}")


def _ended_attempts(field: Field) -> bool:
    return any(attempt.ended is not None for attempt in field.trace().attempts)


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        name="rank_killed", what="kill -9 of one rank", act=rank_killed, quick=True, causes=frozenset({"unknown"})
    ),
    Scenario(
        name="host_killed", what="plug of a host pulled", act=host_killed, causes=frozenset({"node_failure"})
    ),
    Scenario(
        name="keeper_host_killed", what="plug of the batch script's host pulled", act=keeper_host_killed, quick=True,
        causes=frozenset({"node_failure"}),
    ),
    Scenario(
        name="all_hosts_killed", what="plugs of all hosts pulled", act=all_hosts_killed,
        causes=frozenset({"node_failure"}),
    ),
    Scenario(
        name="preempted", what="the urgent partition takes all hosts", act=preempted, quick=True,
        causes=frozenset({"preempted"}),
    ),
    Scenario(
        name="time_limit", what="two minutes for more than two minutes of training", act=time_limit,
        causes=frozenset({"timeout"}), shape=Shape(step_s=5.0, hours=2 / 60),
    ),
    Scenario(name="slurmctld_restarted", what="slurmctld killed, back after the training", act=slurmctld_restarted),
    Scenario(
        name="slurmdbd_down", what="no accounting at all, and a killed rank", act=slurmdbd_down,
        causes=frozenset({"unknown"}),
    ),
    Scenario(name="mlflow_down", what="MLflow server killed in the middle", act=mlflow_down, tracked=True),
    Scenario(
        name="disk_full", what="disk of the run folder full, freed later", act=disk_full, small_disk=True,
        causes=frozenset({"disk"}),
    ),
    Scenario(
        name="rank_hung", what="SIGSTOP of one rank", act=rank_hung, causes=frozenset({"hang"}),
        shape=Shape(hang_s=12.0),
    ),
    Scenario(
        name="checkpoint_corrupted", what="newest checkpoint corrupted, rank killed", act=checkpoint_corrupted,
        quick=True, causes=frozenset({"unknown"}),
    ),
    Scenario(
        name="tar_corrupted", what="a tar corrupted, rank killed", act=tar_corrupted, damages=True,
        causes=frozenset({"unknown"}),
    ),
    Scenario(
        name="launcher_killed", what="orch launch killed at four moments", act=launcher_killed, quick=True
    ),
)  # fmt: skip
