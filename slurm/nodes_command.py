"""`orch nodes`: what happened on which node of a cluster, and which nodes new jobs leave out for it."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator import options

LEDGERS = Path("~/.orch/nodes")

Cluster = Annotated[str | None, typer.Option("--on", metavar="CLUSTER", help="Of one cluster; of all by default.")]
Clear = Annotated[
    str | None, typer.Option("--clear", metavar="NODE", help="Forgets what is noted of a node; '*' means all.")
]


def nodes(on: Cluster = None, clear: Clear = None, *, as_json: options.Json = False) -> None:
    """Shows the ledger of bad nodes: what happened, when, in which runs, and until when it counts.

    Example: orch nodes --clear gpu-017
    """
    ledgers = _ledgers(on)
    if clear is not None:
        _clear(ledgers, clear)
    entries = [entry for name, path in ledgers.items() for entry in describe(name, path)]
    if as_json:
        typer.echo(json.dumps({"nodes": entries}, indent=1))
    elif entries:
        _print(entries)
    else:
        typer.echo(f"nothing is noted of any node in {', '.join(map(str, ledgers.values())) or LEDGERS}")


def describe(cluster: str, path: Path) -> list[dict[str, Any]]:
    """Describes every node that a ledger has something against."""
    from slurm.ledger import Ledger, by_node
    from slurm.nodes import suspected

    incidents = Ledger(path).incidents()
    suspects = suspected(incidents)
    return [
        {
            "cluster": cluster,
            "node": node,
            "left_out": node in suspects,
            "causes": dict(Counter(incident.cause for incident in of_node)),
            "runs": sorted({incident.run for incident in of_node if incident.run}),
            "last": max(incident.time for incident in of_node),
            "expires": max(incident.expires for incident in of_node),
            "incidents": [
                {"time": one.time, "cause": one.cause, "detail": one.detail, "run": one.run} for one in of_node
            ],
        }
        for node, of_node in by_node(incidents).items()
    ]


def _ledgers(on: str | None) -> dict[str, Path]:
    """Returns the ledgers that are meant: of the cluster that was named, or all that lie in the usual place."""
    if on is None:
        return {path.stem: path for path in sorted(LEDGERS.expanduser().glob("*.jsonl"))}
    from slurm.cluster import read_cluster

    cluster = read_cluster(on)
    return {cluster.name: cluster.ledger_path()}


def _clear(ledgers: Mapping[str, Path], node: str) -> None:
    from orchestrator.errors import InputError
    from orchestrator.lock import user_name
    from slurm.ledger import Ledger

    known = {incident.node for path in ledgers.values() for incident in Ledger(path).incidents()}
    if node != "*" and node not in known:
        raise InputError(f"--clear: nothing is noted of {node!r}; there are {', '.join(sorted(known)) or 'no nodes'}")
    for path in ledgers.values():
        if path.exists():
            Ledger(path).clear(node, user_name())


def _print(entries: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from orchestrator.display import make_console

    columns = ("cluster", "node", "what happened", "last", "counts until", "runs", "new jobs")
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for entry in entries:
        causes = ", ".join(f"{count} x {cause}" for cause, count in entry["causes"].items())
        latest = max(entry["incidents"], key=lambda one: one["time"])
        told = f"{causes}: {latest['detail'][:80]}" if latest["detail"] else causes
        use = "leave it out" if entry["left_out"] else "use it"
        moments = [time.strftime("%Y-%m-%d %H:%M", time.localtime(entry[key])) for key in ("last", "expires")]
        # as Text: what a log said must not be taken for colours
        table.add_row(*map(Text, [entry["cluster"], entry["node"], told, *moments, ", ".join(entry["runs"]), use]))
    make_console().print(table)
