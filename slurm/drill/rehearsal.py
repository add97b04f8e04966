"""The cluster, one undisturbed run, the scenarios one after the other, and a verdict on each."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchError, SurroundingsError
from orchestrator.records import record
from slurm.devcluster import DevCluster
from slurm.drill import faults
from slurm.drill.field import DrillFailed, Field
from slurm.drill.proof import damage_differences, differences, duplicates
from slurm.drill.recipe import TRAIN, Shape
from slurm.drill.scenarios import Scenario
from slurm.drill.server import TrackingServer
from slurm.drill.trace import Trace, executions

HOSTS = 4  # one more than the training needs: it can go on without a bad one
SMALL_DISK_MB = 48
_IDLE_S = 90.0


@record
class Outcome:
    """What became of a scenario."""

    scenario: str
    what: str
    causes: tuple[str, ...]  # as `orch status` names them, of the attempts that ended early
    evidence: tuple[str, ...]
    lost_steps: int | None
    back_s: float | None  # from the harm to the first step that a later attempt finished
    seconds: float
    problems: tuple[str, ...]  # empty = passed

    @property
    def passed(self) -> bool:
        """Tells whether nothing was lost, repeated or misnamed."""
        return not self.problems


class Rehearsal:
    """A cluster on which scenarios are rehearsed, and the run they are compared with."""

    def __init__(self, cluster: DevCluster, folder: Path, disk: Path | None) -> None:
        """Takes a cluster that is up; runs go to `folder`, those that need a full disk to `disk`."""
        self.cluster, self._folder, self._disk = cluster, folder, disk
        self._calm: Trace | None = None

    def calm(self) -> Trace:
        """Returns the trace of the undisturbed run, which is made once."""
        if self._calm is None:
            field = Field(self.cluster, self._folder, "undisturbed", Shape(), runs=self._folder / "runs")
            field.launch()
            state = field.wait_until_over()
            trace = field.trace()
            if state != "done" or trace.lost_steps() or trace.result is None:
                raise DrillFailed(f"the undisturbed run ended as {state}: {_reasons(field.status())}; see {field.run}")
            self._calm = trace
        return self._calm

    def rehearse(self, scenario: Scenario) -> Outcome:
        """Rehearses a scenario, and leaves the cluster as it found it."""
        calm = self.calm()
        began = time.monotonic()
        try:
            with self._server(scenario) as server:
                field = self._field(scenario, server)
                problems, status = self._acted(scenario, field)
            trace = field.trace()
            problems += self._judged(scenario, field, calm, trace, status)
        finally:
            self.restore()
        ended = [attempt for attempt in _attempts(status) if attempt["state"] != "done"]
        return Outcome(
            scenario=scenario.name, what=scenario.what,
            causes=tuple(str(attempt["cause"]) for attempt in ended),
            evidence=tuple(line for attempt in ended for line in (attempt["detail"], *attempt.get("evidence", ()))),
            lost_steps=trace.lost_steps(), back_s=trace.back_after(field.harmed) if field.harmed else None,
            seconds=time.monotonic() - began, problems=tuple(problems),
        )  # fmt: skip

    def restore(self) -> None:
        """Ends what still runs, and has every host and daemon up again."""
        cluster = self.cluster
        for start in (cluster.start_controller, cluster.start_accounting):
            with contextlib.suppress(SurroundingsError):
                start()
        cluster.run(["scancel", "-u", "root"])
        for host in cluster.hosts:
            if not cluster.pids(host):
                cluster.start_host(host)
            # slurmctld drains hosts whose jobs it cannot account for, as after its own death: an administrator's turn
            cluster.run(["scontrol", "update", f"NodeName={host}", "State=RESUME"])
        cluster.layout.path("nodes.jsonl").unlink(missing_ok=True)  # the next scenario may use every host
        cluster.wait_idle(_IDLE_S)

    def _field(self, scenario: Scenario, server: TrackingServer | None) -> Field:
        runs = self._folder / "runs"
        if scenario.small_disk:
            if self._disk is None:
                raise SurroundingsError(f"{scenario.name} needs a small disk, which was not mounted")
            runs = self._disk / "runs"
        return Field(self.cluster, self._folder, scenario.name, scenario.shape, runs=runs, server=server)

    @contextlib.contextmanager
    def _server(self, scenario: Scenario) -> Iterator[TrackingServer | None]:
        if not scenario.tracked:
            yield None
            return
        server = TrackingServer(self._folder / f"{scenario.name}.mlflow", address=self.cluster.layout.login)
        try:
            server.start()
            yield server
        finally:
            server.kill()

    def _acted(self, scenario: Scenario, field: Field) -> tuple[list[str], Mapping[str, Any]]:
        """Does the harm and waits for the end; returns what went wrong, and the last status."""
        problems: list[str] = []
        status: Mapping[str, Any] = {}
        try:
            scenario.act(field)
            state = field.wait_until_over()
            if state != "done":
                problems.append(f"the run ended as {state}: {_reasons(field.status())}")
        except (DrillFailed, OrchError, OSError, KeyError, subprocess.SubprocessError) as error:
            problems.append(f"{type(error).__name__}: {error}" if not isinstance(error, DrillFailed) else str(error))
        try:
            status = field.status()
        except (DrillFailed, OSError, ValueError, subprocess.SubprocessError) as error:
            problems.append(str(error))
        return [*problems, *field.notes], status

    def _judged(
        self, scenario: Scenario, field: Field, calm: Trace, trace: Trace, status: Mapping[str, Any]
    ) -> list[str]:
        compare = damage_differences if scenario.damages else differences
        problems = compare(calm, trace) if trace.result is not None else ["the stage after the training has no result"]
        problems += duplicates(executions(self.cluster, field.name))
        ended = [attempt for attempt in _attempts(status) if attempt["state"] != "done"]
        wrong = [
            f"attempt {a['number']}: {a['cause']} ({a['detail']})" for a in ended if a["cause"] not in scenario.causes
        ]
        allowed = " or ".join(sorted(scenario.causes)) or "no attempt to end early"
        problems += [f"the wrong cause: {'; '.join(wrong)}; expected {allowed}"] if wrong else []
        if scenario.causes and not ended:
            problems.append(f"no attempt ended early; expected {allowed}")
        return problems


@contextlib.contextmanager
def rehearsal(folder: Path, scenarios: Sequence[Scenario], *, keep: bool) -> Iterator[Rehearsal]:
    """Starts a cluster in a fresh folder for the scenarios; takes it down afterwards, unless it is to be kept."""
    with contextlib.ExitStack() as stack:
        disk = None
        if any(scenario.small_disk for scenario in scenarios):  # before the hosts, or they would not see it
            disk = stack.enter_context(faults.small_disk(folder / "disk", SMALL_DISK_MB))
        cluster = DevCluster.up(folder / "cluster", name=cluster_name(), nodes=HOSTS)
        stack.callback(cluster.down)
        yield Rehearsal(cluster, folder, disk)
        if keep:
            stack.pop_all()


def cluster_name() -> str:
    """Names the cluster of this process: several drills may go on at a time."""
    return f"drill{os.getpid()}"


def rehearse_all(
    rehearsed: Rehearsal, scenarios: Sequence[Scenario], tell: Callable[[str, Outcome | None], None]
) -> list[Outcome]:
    """Rehearses scenarios one after the other, telling when one begins and how it ended."""
    outcomes = []
    tell("undisturbed", None)
    rehearsed.calm()
    for scenario in scenarios:
        tell(scenario.name, None)
        outcomes.append(rehearsed.rehearse(scenario))
        tell(scenario.name, outcomes[-1])
    return outcomes


def _attempts(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    stages: list[dict[str, Any]] = status.get("stages", [])
    return next((stage["attempts"] for stage in stages if stage["name"] == TRAIN), [])


def _reasons(status: Mapping[str, Any]) -> str:
    last = {stage["name"]: stage["attempts"][-1] for stage in status["stages"] if stage["attempts"]}
    found = {name: [a["cause"], a["detail"]] for name, a in last.items() if a["state"] != "done"}
    return json.dumps(found, ensure_ascii=False)
