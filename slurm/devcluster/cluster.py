"""One dev cluster: up, down, and the accidents that can be arranged in between."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError, SurroundingsError
from slurm.devcluster import daemons, hosts, surroundings
from slurm.devcluster.database import empty_database
from slurm.devcluster.settings import NOTE, Layout, read_note, write_note, write_settings

MOST_NODES = 32
LEAST_REQUEUE_DELAY_S = 5  # slurmctld refuses less, and then takes 120
DAEMON_TIMEOUT_S = 30.0
UP_TIMEOUT_S = 60.0  # a crowded machine
FORK_S = 2.0
LAST_LINES = 12
LONGEST_FOLDER = 80  # a socket's path has at most 107 characters


class DevCluster:
    """A running cluster; every host is a set of namespaces, everything else a file of its folder."""

    def __init__(self, layout: Layout) -> None:
        """Keeps what the cluster is; `up` and `open` are the ways to one."""
        self.layout = layout

    @classmethod
    def up(
        cls, folder: Path, *, name: str = "dev", nodes: int = 3, requeue_delay_s: int = LEAST_REQUEUE_DELAY_S
    ) -> "DevCluster":
        """Starts a cluster in a folder; whatever goes wrong on the way, nothing of it stays."""
        folder = folder.resolve()
        _check(folder, name, nodes, requeue_delay_s)
        surroundings.require()
        folder.mkdir(parents=True, exist_ok=True)
        layout = Layout(folder=folder, name=name, nodes=nodes, subnet=0, requeue_delay_s=requeue_delay_s)
        write_note(layout, first=True)
        cluster = cls(layout)
        try:
            cluster = cls(_claim(layout))
            cluster._start()
        except BaseException:  # an interrupt too
            cluster.down()
            raise
        return cluster

    @classmethod
    def open(cls, folder: Path) -> "DevCluster":
        """Opens the cluster that somebody else started in a folder."""
        layout = read_note(folder.resolve())
        if layout is None:
            raise InputError(f"{folder}: no dev cluster here; start one with `orch cluster up`")
        return cls(layout)

    @classmethod
    def remains(cls, folder: Path, name: str) -> "DevCluster":
        """Opens what is left of a cluster, whatever that is, to take it down."""
        left = Layout(folder=folder, name=name, nodes=0, subnet=0, requeue_delay_s=LEAST_REQUEUE_DELAY_S)
        return cls(read_note(folder) or left)

    @staticmethod
    def everywhere() -> list[tuple[str, Path]]:
        """Finds every cluster of this machine that still has a network: its name and its folder."""
        return sorted(hosts.bridges().values())

    def down(self) -> bool:
        """Ends every process of the cluster and removes all it made, in whatever state; says if there was anything."""
        layout = self.layout
        living = hosts.kill_hosts(layout.folder)
        bridges = [bridge for bridge, (_, folder) in hosts.bridges().items() if folder == layout.folder]
        for bridge in bridges:
            hosts.remove_bridge(bridge)
        noted = read_note(layout.folder) is not None
        if noted:
            _remove(layout.folder)
        return living or bool(bridges) or noted

    @property
    def hosts(self) -> tuple[str, ...]:
        """Returns the names of the hosts that run jobs."""
        return self.layout.hosts

    def cluster_file(self) -> Path:
        """Returns the file to give to `orch launch --on`."""
        return self.layout.path("cluster.yaml")

    def environment(self) -> dict[str, str]:
        """Returns what a process needs in its environment to talk to this cluster."""
        path = os.environ.get("PATH", "")
        return {"SLURM_CONF": str(self.layout.path("slurm.conf")), "PATH": f"{path}:{surroundings.PLACES}"}

    def run(self, command: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        """Runs a command on this machine, as a user of the cluster's login node would."""
        given = {"capture_output": True, "text": True} | options
        given["env"] = dict(given.get("env") or os.environ) | self.environment()
        return subprocess.run(list(command), check=given.pop("check", False), **given)

    def in_host(self, host: str, command: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        """Runs a command inside a host."""
        cwd = Path(options.pop("cwd", None) or "/")
        return self.run(hosts.enter(self._init(host), command, self.environment(), cwd=cwd), **options)

    def pids(self, host: str) -> list[int]:
        """Lists the processes of a host, by their numbers on this machine; none if it is down."""
        return [process for init in hosts.inits(self.layout.folder).get(host, []) for process in hosts.processes(init)]

    def kill_host(self, host: str) -> None:
        """Kills slurmd, job steps and all else of a host at once, as if its plug were pulled."""
        hosts.kill_host(self.layout, host)

    def start_host(self, host: str) -> None:
        """Starts a host again, as after a reboot, and its slurmd; returns before the controller has noticed."""
        if not self.pids(host):
            hosts.start_host(self.layout, host)
        self._launch(host, daemons.slurmd(self.layout, host))

    def stop_controller(self) -> None:
        """Kills slurmctld."""
        self._kill("slurmctld")

    def start_controller(self) -> None:
        """Starts slurmctld again; returns when it answers."""
        self._launch(self.layout.controller, daemons.slurmctld(self.layout))

    def stop_accounting(self) -> None:
        """Kills slurmdbd: from now on sacct finds nobody."""
        self._kill("slurmdbd")

    def start_accounting(self) -> None:
        """Starts slurmdbd again; returns when it answers."""
        self._launch(self.layout.controller, daemons.slurmdbd(self.layout))

    def wait_idle(self, timeout_s: float = 30) -> None:
        """Waits until every host is up and no job runs or waits."""

        def idle() -> bool:
            nodes = self.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%t"]).stdout.split()
            jobs = self.run(["squeue", "-h", "-o", "%i"])
            return nodes == ["idle"] * self.layout.nodes and jobs.returncode == 0 and not jobs.stdout.strip()

        hosts.wait(idle, timeout_s, f"{self.layout.name}: not idle after {timeout_s:g} s", every_s=0.2)

    def status(self) -> dict[str, Any]:
        """Says what runs: hosts with Slurm's word about them, daemons, jobs."""
        layout = self.layout
        said = self.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%N %T"])
        states = dict(line.split() for line in said.stdout.splitlines())
        names = {host: [hosts.name_of(one) for one in self.pids(host)] for host in (layout.controller, *layout.hosts)}
        nodes = [
            {
                "name": host,
                "state": states.get(host, "unknown") if names[host] else f"killed ({states.get(host, 'unknown')})",
                "address": layout.address(host),
                "processes": len(names[host]),
                "slurmd": "slurmd" in names[host],
            }
            for host in layout.hosts
        ]
        jobs = self.run(["squeue", "-h", "-o", "%i|%T|%P|%N|%r|%j"]).stdout.splitlines()
        keys = ("id", "state", "partition", "nodes", "reason", "name")
        return {
            "name": layout.name,
            "folder": str(layout.folder),
            "cluster_file": str(self.cluster_file()),
            "daemons": {
                one: one in names[layout.controller] for one in ("slurmctld", "slurmdbd", "mariadbd", "munged")
            },
            "nodes": nodes,
            "jobs": [dict(zip(keys, line.split("|", 5), strict=True)) for line in jobs],
        }

    def _start(self) -> None:
        layout = self.layout
        write_settings(layout, socket.gethostname())
        empty_database(layout.path("database"))
        with ThreadPoolExecutor() as pool:
            started = [pool.submit(hosts.start_host, layout, host) for host in layout.hosts]
            hosts.start_host(layout, layout.controller)
            database = pool.submit(self._launch, layout.controller, daemons.mariadb(layout))
            self._launch(layout.controller, daemons.munged(layout))
            for one in started:
                one.result()
            database.result()
            self._launch(layout.controller, daemons.slurmdbd(layout))
            self._launch(layout.controller, daemons.slurmctld(layout))
            list(pool.map(lambda host: self._launch(host, daemons.slurmd(layout, host)), layout.hosts))
        self.wait_idle(UP_TIMEOUT_S)

    def _launch(self, host: str, daemon: daemons.Daemon) -> None:
        """Starts a daemon in a host, unless it runs; returns when it answers, or says what its log said last."""
        init = self._init(host)
        if _running(init, daemon.name):
            return
        command = ["setsid", "--fork", *daemon.command]
        line = hosts.enter(init, command, self.environment() | dict(daemon.environment), cwd=self.layout.folder)
        with daemon.logs[-1].open("ab") as log:
            subprocess.run(line, check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        begun = time.monotonic()
        while not daemon.answers():
            passed_s = time.monotonic() - begun
            alive = bool(_running(init, daemon.name))
            # between fork and exec it does not bear its name yet
            if (not alive and passed_s > FORK_S) or passed_s > DAEMON_TIMEOUT_S:
                how = "does not answer" if alive else "ended"
                last = _last_lines(daemon.logs)
                raise SurroundingsError(f"{self.layout.name}: {daemon.name} of {host} {how}\n{last}")
            time.sleep(hosts.POLL_S)

    def _init(self, host: str) -> int:
        if host not in (*self.layout.hosts, self.layout.controller):
            known = ", ".join(self.layout.hosts)
            raise InputError(f"{self.layout.name} has no host {host!r}; it has {known}")
        if found := hosts.inits(self.layout.folder).get(host):
            return found[0]
        raise SurroundingsError(f"host {host} of cluster {self.layout.name} is down")

    def _kill(self, name: str) -> None:
        init = self._init(self.layout.controller)

        def gone() -> bool:
            victims = _running(init, name)
            for victim in victims:  # each time: one of them may have just forked another
                hosts.kill(victim)
            return not victims

        hosts.wait(gone, 10, f"{name} outlived kill -9")


def _running(init: int, name: str) -> list[int]:
    """Lists the processes of this name in a host; one that is dead, but still has its name, is none."""
    return [one for one in hosts.processes(init) if hosts.name_of(one) == name and hosts.runs(one)]


def _check(folder: Path, name: str, nodes: int, requeue_delay_s: int) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]{0,15}", name):
        raise InputError(f"name: {name!r} cannot name hosts; a small letter, then up to 15 small letters or digits")
    if not 1 <= nodes <= MOST_NODES:
        raise InputError(f"nodes: {nodes} is not between 1 and {MOST_NODES}")
    if requeue_delay_s < LEAST_REQUEUE_DELAY_S:
        raise InputError(f"requeue delay: Slurm allows no less than {LEAST_REQUEUE_DELAY_S} s, not {requeue_delay_s}")
    if len(str(folder)) > LONGEST_FOLDER or re.search(r"[^\w./+@-]", str(folder)):
        raise InputError(
            f"folder: {str(folder)!r} must have at most {LONGEST_FOLDER} characters, none of them special: "
            "Slurm reads it from its configuration, and sockets lie in it"
        )
    if read_note(folder) is not None:
        raise InputError(f"{folder} holds a dev cluster already; `orch cluster down` ends it")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"folder: {folder} is not empty")
    for other, place in DevCluster.everywhere():
        if other == name:
            raise InputError(f"name: a dev cluster {name!r} is up in {place}; choose another name, or take it down")


def _claim(layout: Layout) -> Layout:
    """Takes a network for a cluster: making a bridge is what two of us cannot both do."""
    for subnet in range(1, 255):
        claimed = replace(layout, subnet=subnet)
        if hosts.add_bridge(claimed):
            write_note(claimed)
            return claimed
    raise SurroundingsError("all networks 10.77.1.0/24 to 10.77.254.0/24 are taken")


def _remove(folder: Path) -> None:
    """Removes a cluster's folder; the note goes last, so that an interrupted removal can be taken up again."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != NOTE:
            entry.unlink()
    shutil.rmtree(folder)


def _last_lines(logs: Sequence[Path]) -> str:
    lines = [line for log in logs if log.exists() for line in log.read_text(errors="replace").splitlines()]
    return "\n".join(f"  {line}" for line in lines[-LAST_LINES:]) or "  (its log is empty)"
