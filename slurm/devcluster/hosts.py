"""Hosts made of namespaces: processes, network, mounts and a name of their own; one dies whole, as by its plug."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.errors import SurroundingsError
from slurm.devcluster.settings import Layout

START_TIMEOUT_S = 20.0
DEATH_TIMEOUT_S = 20.0
POLL_S = 0.02
ALIAS = "orch-devcluster"  # how the bridge of a cluster says whose it is
DRAFT = "orch77-p"  # and its maker's number: a bridge that has no number yet


def start_host(layout: Layout, host: str) -> None:
    """Starts a host's first process and plugs its cable in; returns when its network is up."""
    up = layout.path("run", f"{host}.up")
    up.unlink(missing_ok=True)
    init = ["bash", str(layout.path("host.sh")), host, layout.address(host), str(layout.folder)]
    apart = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--net", "--uts", "--ipc"]
    with layout.path("log", f"{host}.log").open("ab") as log:
        # --fork: nobody who calls us becomes the parent of a host
        subprocess.run(
            ["setsid", "--fork", *apart, *init], check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    process = _wait_for_init(layout, host)
    cable = _cable(layout, host)
    # the kernel takes its time to remove the cable of a host that died
    subprocess.run(["ip", "link", "delete", cable], check=False, capture_output=True)
    # a host keeps its network card when it is started again: whoever knows its number goes on reaching it
    card = f"02:77:00:00:{layout.subnet:02x}:{layout.number(host):02x}"
    _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "address", card, "netns", str(process))
    _ip("link", "set", cable, "master", layout.bridge, "up")
    wait(up.exists, START_TIMEOUT_S, f"the network of {host} did not come up: see {layout.path('log', host)}.log")


def kill_host(layout: Layout, host: str) -> None:
    """Cuts a host off and kills every process of it at once; returns when none is left.

    Who loses power says no goodbye. With the cable in, the kernel would end every connection of the dying, and who
    talked to them would know long before Slurm: srun fails its job then, and a lost host looks like a bug of the job.
    """
    subprocess.run(["ip", "link", "set", _cable(layout, host), "down"], check=False, capture_output=True)
    for process in inits(layout.folder).get(host, []):
        _kill_all([process])


def kill_hosts(folder: Path) -> bool:
    """Kills every host of a cluster, those that are just being started too; says if there was any."""
    script, any_found = str(folder / "host.sh"), False
    while found := [process for process in _all_processes() if script in _words(process) and runs(process)]:
        any_found = True
        _kill_all(found)
    return any_found


def enter(process: int, command: Sequence[str], environment: Mapping[str, str], *, cwd: Path) -> list[str]:
    """Returns the command line that runs `command` inside the host whose first process is given."""
    told = [f"{name}={value}" for name, value in environment.items()]
    inside = ["nsenter", "-t", str(process), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]
    return [*inside, "env", "-C", str(cwd), *told, *command]


def inits(folder: Path) -> dict[str, list[int]]:
    """Finds the first process of each living host of a cluster, by what runs, not by what was noted."""
    found: dict[str, list[int]] = {}
    for process in _all_processes():
        words = _words(process)
        if len(words) >= 5 and words[1] == str(folder / "host.sh") and _is_first(process):
            found.setdefault(words[2], []).append(process)
    return found


def processes(init: int) -> list[int]:
    """Lists every process of the host whose first process is given, the first included."""
    place = _namespace(init)
    return [process for process in _all_processes() if place is not None and _namespace(process) == place]


def name_of(process: int) -> str:
    """Returns the name of a process's program; empty if the process is gone."""
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def add_bridge(layout: Layout) -> bool:
    """Makes the cluster's bridge; says False if another cluster, or anything else here, has this number.

    A bridge gets its number last: one with a number says whose it is, whenever its maker is killed.
    """
    if subprocess.run(
        ["ip", "-o", "route", "show", "root", f"10.77.{layout.subnet}.0/24"], check=True, capture_output=True
    ).stdout:
        return False
    _remove_drafts()
    draft = f"{DRAFT}{os.getpid()}"
    _ip("link", "add", draft, "type", "bridge")
    _ip("link", "set", draft, "alias", f"{ALIAS} {layout.name} {layout.folder}")
    named = subprocess.run(
        ["ip", "link", "set", draft, "name", layout.bridge], check=False, capture_output=True, text=True
    )
    if named.returncode != 0:
        _ip("link", "delete", draft)
        if "exists" in named.stderr:
            return False
        raise SurroundingsError(f"ip link set {draft} name {layout.bridge}: {named.stderr.strip()}")
    _ip("address", "add", f"{layout.login}/24", "dev", layout.bridge)
    _ip("link", "set", layout.bridge, "up")
    return True


def _remove_drafts() -> None:
    """Removes bridges whose maker was killed before it could say whose they are."""
    for link in _links():
        name = str(link["ifname"])
        if name.startswith(DRAFT) and "ifalias" not in link and not runs(int(name.removeprefix(DRAFT))):
            subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


def bridges() -> dict[str, tuple[str, Path]]:
    """Finds the bridges of every cluster on this machine, with the cluster's name and folder."""
    found = {}
    for link in _links():
        marker, _, rest = str(link.get("ifalias", "")).partition(" ")
        if marker == ALIAS:
            name, _, folder = rest.partition(" ")
            found[str(link["ifname"])] = (name, Path(folder))
    return found


def remove_bridge(bridge: str) -> None:
    """Removes a bridge and the cables that are still in it."""
    cables = [str(link["ifname"]) for link in _links() if link.get("master") == bridge]
    for name in (*cables, bridge):
        # a cable whose host died a moment ago may vanish under our hands
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


def wait(done: Callable[[], bool], timeout_s: float, complaint: str, *, every_s: float = POLL_S) -> None:
    """Waits until something is so."""
    end = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end:
            raise SurroundingsError(complaint)
        time.sleep(every_s)


def kill(process: int) -> None:
    """Kills a process that may already be gone."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _kill_all(heads: Sequence[int]) -> None:
    """Kills processes; who is first in a host takes the whole host along, and who is not takes nobody."""
    alive = [*heads, *(one for head in heads if _is_first(head) for one in processes(head))]
    for head in heads:
        kill(head)
    wait(partial(_all_gone, alive), DEATH_TIMEOUT_S, f"processes {alive} outlived kill -9")


def _wait_for_init(layout: Layout, host: str) -> int:
    wait(
        lambda: bool(inits(layout.folder).get(host)), START_TIMEOUT_S, f"{host} did not start: see {layout.path('log')}"
    )
    return inits(layout.folder)[host][0]


def _cable(layout: Layout, host: str) -> str:
    return f"{layout.bridge}-{layout.number(host)}"


def _ip(*words: str) -> None:
    made = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    if made.returncode != 0:
        raise SurroundingsError(f"ip {' '.join(words)}: {made.stderr.strip()}")


def _all_gone(those: Sequence[int]) -> bool:
    return not any(map(runs, those))


def _links() -> list[dict[str, Any]]:
    listed = subprocess.run(["ip", "-j", "-d", "link", "show"], check=True, capture_output=True, text=True).stdout
    links: list[dict[str, Any]] = json.loads(listed or "[]")
    return links


def _all_processes() -> list[int]:
    return [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]


def _words(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def _is_first(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    inner = next((line for line in status.splitlines() if line.startswith("NSpid:")), "").split()[1:]
    return len(inner) > 1 and inner[-1] == "1"


def _namespace(process: int) -> str | None:
    try:
        return str(Path(f"/proc/{process}/ns/pid").readlink())
    except OSError:  # gone, or a zombie
        return None


def runs(process: int) -> bool:
    """Asks whether a process still does anything."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
