"""The daemons of a dev cluster: how each is started, and how one knows that it answers."""

import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path

from orchestrator.records import record
from slurm.devcluster.settings import Layout


@record
class Daemon:
    """One daemon: its program's name, its command line, and a question that it answers once it is up."""

    name: str
    command: tuple[str, ...]
    answers: Callable[[], bool]
    logs: tuple[Path, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def munged(layout: Layout) -> Daemon:
    """Says how to start the daemon by which Slurm knows who asks; with a key of this cluster only."""
    key, place = layout.path("run", "munge.key"), layout.path("run", "munge")
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
    files = {"key-file": key, "socket": place, "pid-file": layout.path("run", "munged.pid")}
    files |= {"log-file": layout.path("log", "munged.log"), "seed-file": layout.path("run", "munge.seed")}
    options = [f"--{name}={path}" for name, path in files.items()]
    return Daemon(
        name="munged",
        # --force: a cluster's folder may lie below one that others may write to, such as /tmp
        command=("munged", "--foreground", "--force", "--num-threads=10", *options),
        answers=lambda: _listens(place),
        logs=(layout.path("log", "munged.log"), layout.path("log", "munged.out")),
    )


def mariadb(layout: Layout) -> Daemon:
    """Says how to start the database that slurmdbd writes to: small, forgetful at a power cut, without network."""
    place = layout.path("run", "mariadb")
    return Daemon(
        name="mariadbd",
        command=("mariadbd", *MARIADB_OPTIONS, f"--datadir={layout.path('database')}", f"--socket={place}"),
        answers=lambda: _listens(place, greets=True),
        logs=(layout.path("log", "mariadbd.out"),),
    )


def slurmdbd(layout: Layout) -> Daemon:
    """Says how to start the accounting daemon."""
    return Daemon(
        name="slurmdbd",
        command=("slurmdbd", "-D"),
        answers=lambda: _answers(layout.address(layout.controller), 6819),
        logs=(layout.path("log", "slurmdbd.log"), layout.path("log", "slurmdbd.out")),
        environment={"MYSQL_UNIX_PORT": str(layout.path("run", "mariadb"))},
    )


def slurmctld(layout: Layout) -> Daemon:
    """Says how to start the controller."""
    return Daemon(
        name="slurmctld",
        command=("slurmctld", "-D"),
        answers=lambda: _answers(layout.address(layout.controller), 6817),
        logs=(layout.path("log", "slurmctld.log"), layout.path("log", "slurmctld.out")),
    )


def slurmd(layout: Layout, host: str) -> Daemon:
    """Says how to start the daemon that runs jobs on a host."""
    layout.path("spool", host).mkdir(exist_ok=True)
    return Daemon(
        name="slurmd",
        command=("slurmd", "-D", "-N", host),
        answers=lambda: _answers(layout.address(host), 6818),
        logs=(layout.path("log", f"slurmd.{host}.log"), layout.path("log", f"{host}.slurmd.out")),
    )


MARIADB_OPTIONS = (
    "--no-defaults",
    "--user=root",
    "--skip-networking",
    "--skip-log-bin",
    "--performance-schema=OFF",
    "--innodb-buffer-pool-size=32M",
    "--innodb-log-file-size=8M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=0",
    "--innodb-lock-wait-timeout=900",
    "--max-connections=50",
)


def _listens(place: Path, *, greets: bool = False) -> bool:
    """Asks whether somebody listens at a socket, and says the first word if that is whose turn it is."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(2)
        try:
            line.connect(str(place))
            return not greets or bool(line.recv(1))
        except OSError:
            return False


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True
