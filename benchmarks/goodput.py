"""Measures what faults cost: a chain on a real Slurm with a random fault after every 30 s of training, for 10 minutes.

python -m benchmarks.goodput                 # a table, about half an hour
python -m benchmarks.goodput --json --quick  # two to three minutes: a fault every 12 s of training

The same chain runs once undisturbed. Useful are the steps that did not have to be done again; detection is the end of
an attempt as its keeper, or Slurm, has noticed it; resubmission is the next attempt of the same job, or its requeue.
"""

import contextlib
import itertools
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from benchmarks import claims
from benchmarks.claims import Claim
from benchmarks.command import dev_cluster
from orchestrator.errors import OrchError
from slurm.devcluster import DevCluster
from slurm.drill import faults
from slurm.drill.field import DrillFailed, Field
from slurm.drill.proof import differences, duplicates
from slurm.drill.recipe import RANKS, Shape, training_stages
from slurm.drill.rehearsal import HOSTS
from slurm.drill.trace import Execution, Trace, executions, read_trace

USEFUL_BAR, RESUBMIT_BAR_S = 0.98, 10.0
HANG_S, BOOT_S, STEP_S = 15.0, 15.0, 0.2


class _Size(NamedTuple):
    training_s: float  # of the undisturbed chain
    fault_every_s: float  # of training
    seed: int


_FULL = _Size(training_s=600, fault_every_s=30, seed=4)
_QUICK = _Size(training_s=40, fault_every_s=12, seed=4)


def main() -> None:
    """Measures and prints, as a table or as JSON."""
    parser = claims.command_line(__doc__)
    parser.add_argument("--seed", type=int, default=None, help="which faults")
    options = parser.parse_args()
    size, machine = _QUICK if options.quick else _FULL, claims.machine()
    size = size if options.seed is None else size._replace(seed=options.seed)
    with dev_cluster("goodput", nodes=HOSTS) as (cluster, folder):
        found = _measured(cluster, folder, size)
    claims.show(found, machine, claims.versions(), as_json=options.json)


def _measured(cluster: DevCluster, folder: Path, size: _Size) -> list[Claim]:
    # a save every other step: a fault every 30 s may cost 0.6 s of steps at most
    links = 2
    shape = Shape(
        steps=round(size.training_s / STEP_S / links), step_s=STEP_S, save_every=2, hang_s=HANG_S, links=links
    )
    calm = Field(cluster, folder, "calm", shape, runs=folder / "runs")
    calm.launch()
    claims.say(f"undisturbed: {calm.wait_until_over(4 * size.training_s + 120)}")
    soaked = Field(cluster, folder, "soaked", shape, runs=folder / "runs")
    soaked.launch()
    done = list(_soak(soaked, size))
    state = soaked.wait_until_over(10 * size.training_s + 300)
    claims.say(f"with faults: {state}")
    return _claims(cluster, calm, soaked, done, state)


def _soak(field: Field, size: _Size) -> Iterator[str]:
    """Does harm after every so many seconds of training, until the chain is over; yields what was done."""
    chance = random.Random(size.seed)  # noqa: S311 - which fault, not a secret
    names = list(FAULTS)
    steps_between = round(size.fault_every_s / STEP_S)
    while _trained_further(field, steps_between):
        name = chance.choice(names)
        try:
            FAULTS[name](field, chance)
        except (KeyError, ProcessLookupError, DrillFailed) as error:  # between two stages, there was nobody to harm
            claims.say(f"{name}: nobody there ({error})")
            continue
        claims.say(f"{name} at {_executed(field)} steps")
        yield name


def _trained_further(field: Field, steps: int) -> bool:
    """Waits until so many steps more are executed and a rank runs; False if the chain was over first."""
    goal = _executed(field) + steps
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if all((field.run / name / "model" / "manifest.json").is_file() for name in training_stages(field.shape)):
            return False
        if _executed(field) >= goal:
            return True
        time.sleep(0.2)
    raise DrillFailed(f"no further step for 300 s; orch status: {json.dumps(field.status())}")


def _executed(field: Field) -> int:
    return sum(len(trace.steps) for trace in _traces(field).values())


def _kill_rank(field: Field, chance: random.Random) -> None:
    faults.kill_rank(field, chance.randrange(RANKS))


def _kill_host(field: Field, chance: random.Random) -> None:
    faults.kill_hosts(field, [field.host_of(chance.randrange(RANKS))], back_after_s=BOOT_S)


def _hang(field: Field, chance: random.Random) -> None:
    faults.kill_rank(field, chance.randrange(RANKS), number=signal.SIGSTOP)


def _preempt(field: Field, chance: random.Random) -> None:
    faults.urgent_job(field, seconds=chance.uniform(2, 6))


def _restart_controller(field: Field, chance: random.Random) -> None:
    field.cluster.stop_controller()
    time.sleep(chance.uniform(1, 4))
    field.cluster.start_controller()


def _without_accounting(field: Field, chance: random.Random) -> None:
    field.cluster.stop_accounting()
    with contextlib.suppress(KeyError, ProcessLookupError):
        _kill_rank(field, chance)
    time.sleep(chance.uniform(3, 6))
    field.cluster.start_accounting()


FAULTS: Mapping[str, Callable[[Field, random.Random], None]] = {
    "rank killed": _kill_rank,
    "host killed": _kill_host,
    "rank hung": _hang,
    "preempted": _preempt,
    "slurmctld restarted": _restart_controller,
    "rank killed without accounting": _without_accounting,
}


def _claims(cluster: DevCluster, calm: Field, soaked: Field, done: Sequence[str], state: str) -> list[Claim]:
    traces, usual = _traces(soaked), _traces(calm)
    executed = sum(len(trace.steps) for trace in traces.values())
    lost = sum(trace.lost_steps() for trace in traces.values())
    jobs = executions(cluster, "soaked")
    wrong = [f"{name}: {problem}" for name in traces for problem in differences(usual[name], traces[name])]
    waits = [wait for trace in traces.values() for wait in resubmissions(trace, jobs)]
    what = f"{len(done)} faults in {executed} steps on {RANKS} ranks: " + ", ".join(
        f"{done.count(name)} x {name}" for name in FAULTS if name in done
    )
    twice = duplicates(jobs)
    equal = "losses, samples and final weights are equal to the last bit"
    soon, begun = [wait for wait, _ in waits], [wait for _, wait in waits]
    medians = f", median {statistics.median(soon):.1f} s" if waits else ""
    medians += f"; until the next attempt began {statistics.median(begun):.1f} s" if waits else ""
    share = (executed - lost) / executed
    return [
        _one("useful steps", share, "of all", USEFUL_BAR, note=f"{what}; {lost} done again; the chain is {state}"),
        _one("duplicate jobs", len(twice), "jobs", 0, note="; ".join(twice) or f"of {len(jobs)} executions"),
        _one("differences to the undisturbed chain", len(wrong), "of them", 0, note="; ".join(wrong[:3]) or equal),
        _one(
            "detection to resubmission, longest", max(soon, default=0.0), "s", RESUBMIT_BAR_S,
            note=f"{len(waits)} times{medians}, with Slurm's requeue delay and what the fault itself took",
        ),
    ]  # fmt: skip


def _one(name: str, value: float, unit: str, bar: float, *, note: str) -> Claim:
    direction: claims.Direction = "at least" if unit == "of all" else "at most"
    return claims.claim(name, [value], None, unit, peer_name=None, bar=bar, direction=direction, note=note)


def resubmissions(trace: Trace, jobs: Sequence[Execution]) -> list[tuple[float, float]]:
    """Returns, for each attempt that another followed, two times since its end was noticed.

    Until it was resubmitted: the next attempt in the same allocation, or the requeue of the job. And until the next
    attempt began, with Slurm's requeue delay and whatever wait for hosts.
    """
    waits = []
    for before, after in itertools.pairwise(trace.attempts):
        ran = [job for job in jobs if job.job_id == after.job_id]
        ended = [at for job in ran if (at := _seconds(job.end)) is not None and before.started < at]
        noticed = min([before.ended or after.started, *ended])
        # Slurm tells whole seconds
        queued = [at for job in ran if (at := _seconds(job.submit)) is not None and noticed - 1 <= at <= after.started]
        waits.append((max(0.0, min([after.started, *queued]) - noticed), after.started - noticed))
    return waits


def _traces(field: Field) -> dict[str, Trace]:
    return {name: read_trace(field.run, name) for name in training_stages(field.shape)}


def _seconds(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        return None


if __name__ == "__main__":
    try:
        main()
    except (OrchError, DrillFailed, subprocess.SubprocessError) as error:
        sys.exit(f"benchmarks.goodput: {error}")
