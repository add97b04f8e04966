"""`orch drill`: rehearses failures on a real Slurm on this machine, and proves that nothing is lost."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import options

if TYPE_CHECKING:
    from slurm.drill.rehearsal import Outcome
    from slurm.drill.scenarios import Scenario

Names = Annotated[list[str] | None, typer.Argument(metavar="[SCENARIO]...", help="Which; all by default.")]
List = Annotated[bool, typer.Option("--list", help="Lists the scenarios; rehearses none.")]
Quick = Annotated[bool, typer.Option("--quick", help="Only those that take little time.")]
Keep = Annotated[bool, typer.Option("--keep", help="Leaves the cluster and the run folders to look at.")]


def drill(
    scenarios: Names = None,
    *,
    listing: List = False,
    quick: Quick = False,
    keep: Keep = False,
    as_json: options.Json = False,
) -> None:
    """Kills ranks, hosts, disks and daemons under a training on a Slurm of its own, and proves that nothing is lost.

    Every scenario is compared with an undisturbed run: the same losses and samples in every step, the same weights, no
    duplicate job, the right cause named. Needs root and Debian's Slurm.

    Example: orch drill rank_killed preempted
    """
    from orchestrator.display import make_console
    from slurm.drill import show
    from slurm.drill.rehearsal import cluster_name

    if listing:
        shown = show.scenario_documents()
        typer.echo(json.dumps(shown, indent=1)) if as_json else make_console().print(show.scenario_table())
        return
    chosen = _chosen(scenarios or [], quick=quick)
    folder = Path(tempfile.mkdtemp(prefix="orch-drill-"))
    try:
        outcomes = _rehearsed(folder, chosen, keep=keep)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        typer.echo(json.dumps(show.document(outcomes, str(folder) if keep else None), indent=1))
    else:
        make_console().print(show.outcome_table(outcomes))
    if keep:
        typer.echo(f"kept: {folder}; orch cluster down --name {cluster_name()} ends its cluster", err=True)
    raise typer.Exit(0 if all(one.passed for one in outcomes) else 1)


def _chosen(names: Sequence[str], *, quick: bool) -> "list[Scenario]":
    from orchestrator.errors import InputError
    from orchestrator.typed import suggestion
    from slurm.drill.scenarios import SCENARIOS

    known = {scenario.name: scenario for scenario in SCENARIOS}
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"there is no scenario {unknown[0]!r}{suggestion(unknown[0], list(known))}; orch drill --list")
    chosen = [known[name] for name in dict.fromkeys(names)] or list(SCENARIOS)
    return [scenario for scenario in chosen if scenario.quick or not quick]


def _rehearsed(folder: Path, chosen: "Sequence[Scenario]", *, keep: bool) -> "list[Outcome]":
    from orchestrator.errors import SurroundingsError
    from slurm.devcluster import surroundings
    from slurm.drill.field import DrillFailed
    from slurm.drill.rehearsal import rehearsal, rehearse_all
    from slurm.drill.show import outcome_line

    surroundings.require()

    def tell(name: str, outcome: "Outcome | None") -> None:
        typer.echo(f"{name} ..." if outcome is None else outcome_line(outcome), err=True)

    try:
        with rehearsal(folder, chosen, keep=keep) as rehearsed:
            return rehearse_all(rehearsed, chosen, tell)
    except DrillFailed as error:
        raise SurroundingsError(f"nothing could be rehearsed: {error}") from error
