"""`orch cluster`: a real Slurm of a few hosts on this machine, to try recipes and failures on."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator import options

app = typer.Typer(
    name="cluster",
    help="A real Slurm of a few hosts on this machine (needs root), to try recipes and failures on.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Name = Annotated[str, typer.Option("--name", metavar="NAME", help="Several clusters can exist side by side.")]
Nodes = Annotated[int, typer.Option("--nodes", metavar="N", help="How many hosts.")]
Install = Annotated[bool, typer.Option("--install", help="Installs the Debian packages that are missing.")]
RequeueDelay = Annotated[
    int, typer.Option("--requeue-delay", metavar="S", help="Seconds that a requeued job waits; 120 on most clusters.")
]


@app.command()
def up(
    name: Name = "dev",
    nodes: Nodes = 3,
    requeue_delay_s: RequeueDelay = 5,
    *,
    install: Install = False,
    as_json: options.Json = False,
) -> None:
    """Starts slurmctld, slurmdbd, MariaDB, munge and a slurmd a host; says how to use them.

    Example: orch cluster up --nodes 3
    """
    from slurm.devcluster import DevCluster, surroundings

    if install:
        surroundings.install()
    cluster = DevCluster.up(_folder(name), name=name, nodes=nodes, requeue_delay_s=requeue_delay_s)
    use = {
        "name": name,
        "folder": str(cluster.layout.folder),
        "hosts": list(cluster.hosts),
        "cluster_file": str(cluster.cluster_file()),
        "environment": {"SLURM_CONF": cluster.environment()["SLURM_CONF"]},
    }
    if as_json:
        typer.echo(json.dumps(use, indent=1))
        return
    typer.echo(f"cluster {name} is up: {', '.join(cluster.hosts)}; partitions main, cpu (preemptible) and urgent\n")
    typer.echo(f"  export SLURM_CONF={cluster.environment()['SLURM_CONF']}")
    typer.echo(f"  orch launch RECIPE --on {cluster.cluster_file()}")
    typer.echo("  sinfo; squeue; sacct; srun -N2 hostname")
    typer.echo(f"  orch cluster down{'' if name == 'dev' else f' --name {name}'}")


@app.command()
def down(name: Name = "dev", *, as_json: options.Json = False) -> None:
    """Ends a cluster and removes all it made: processes, interfaces, files. Works in whatever state it is.

    Example: orch cluster down
    """
    from slurm.devcluster import DevCluster

    # by its name in the kernel's list of networks, and by what lies where it usually lies
    places = {folder for other, folder in DevCluster.everywhere() if other == name}
    usual = DevCluster.remains(_folder(name), name)
    ended = [folder for folder in places if DevCluster.remains(folder, name).down()]
    ended += [usual.layout.folder] if usual.down() else []
    if as_json:
        typer.echo(json.dumps({"name": name, "ended": [str(folder) for folder in ended]}, indent=1))
    else:
        typer.echo(f"cluster {name} is down; nothing of it is left" if ended else f"there is no cluster {name}")


@app.command()
def status(name: Name = "dev", *, as_json: options.Json = False) -> None:
    """Shows a cluster's nodes with their states, its daemons and its jobs.

    Example: orch cluster status --json
    """
    from slurm.devcluster import DevCluster

    places = dict(DevCluster.everywhere())
    facts = DevCluster.open(places.get(name, _folder(name))).status()
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
    else:
        _print_status(facts)


def _print_status(facts: dict[str, Any]) -> None:
    from rich.table import Table

    from orchestrator.display import make_console

    console = make_console()
    daemons = ", ".join(f"{daemon} {'up' if runs else 'DOWN'}" for daemon, runs in facts["daemons"].items())
    console.print(f"cluster {facts['name']} in {facts['folder']}\n{daemons}\n", markup=False, soft_wrap=True)
    for key, columns in (("nodes", ("name", "state", "address", "processes")), ("jobs", ("id", "name", "state"))):
        table = Table(*columns, box=None, pad_edge=False, header_style="bold")
        for row in facts[key]:
            table.add_row(*(str(row[column]) for column in columns))
        console.print(table if facts[key] else f"no {key}")


def _folder(name: str) -> Path:
    return (Path.home() / ".orch" / "devcluster" / name).resolve()
