"""Where the ranks of a job meet: an address and a port of its first node, and the network interface that leads there.

GPUs are no business of ours: Slurm sets CUDA_VISIBLE_DEVICES for each task to all GPUs of the job on the node, and a
rank takes the one of its LOCAL_RANK (`World.from_environment`).
"""

import fcntl
import random
import socket
import struct
from collections.abc import Sequence

from slurm.asking import SlurmAway, SlurmRefused, ask

# below the ports that kernels lend to outgoing connections
PORTS = range(15_000, 32_000)
TRIES = 100
_SIOCGIFADDR = 0x8915


def address_for(nodes: Sequence[str], interface: str) -> str:
    """Returns the address under which this node, the first of a job, is reached from the others."""
    if len(nodes) == 1:
        return "127.0.0.1"
    if is_named(interface):
        found = address_of(interface.removeprefix("=").split(",")[0])
        if found is not None:
            return found
    # not the address of our own name: many a hosts file says 127.0.1.1 of it
    return _own_address_towards(_address_of_node(nodes[1]))


def free_port(address: str) -> int:
    """Finds a port of this node that nobody uses."""
    chosen = random.SystemRandom()
    for _ in range(TRIES):
        port = chosen.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
    raise OSError(f"none of {TRIES} ports of {address} is free")


def interface_variables(interface: str, master: str) -> dict[str, str]:
    """Returns what tells gloo and NCCL their interface: the one of the cluster file, or the one that leads to `master`.

    What the environment says already is obeyed; the caller sees to that.
    """
    found = interface_towards(master)
    told = {} if interface == "auto" else {"NCCL_SOCKET_IFNAME": interface}
    if is_named(interface):
        return told | {"GLOO_SOCKET_IFNAME": interface.removeprefix("=")}
    if found is None:
        return told
    return {"NCCL_SOCKET_IFNAME": f"={found}", "GLOO_SOCKET_IFNAME": found} | told


def is_named(interface: str) -> bool:
    """Tells whether a cluster file names interfaces, and not "auto" or those that NCCL shall not use."""
    return interface != "auto" and not interface.startswith("^")


def interface_towards(address: str) -> str | None:
    """Returns the interface over which this node reaches an address, which may be its own."""
    try:
        own = _own_address_towards(address)
    except OSError:
        return None
    return next((name for _, name in socket.if_nameindex() if address_of(name) == own), None)


def address_of(interface: str) -> str | None:
    """Returns the IPv4 address of an interface of this node."""
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            return socket.inet_ntoa(fcntl.ioctl(asked.fileno(), _SIOCGIFADDR, request)[20:24])
        except OSError:
            return None


def _own_address_towards(address: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # nothing is sent: the kernel only chooses a route
        return str(probe.getsockname()[0])


def _address_of_node(node: str) -> str:
    """Asks Slurm, which reaches its nodes; names alone may lead elsewhere."""
    try:
        words = ask(["scontrol", "show", "node", "--oneliner", node], tries=1).split()
    except (SlurmAway, SlurmRefused):
        words = []
    told = next((word.removeprefix("NodeAddr=") for word in words if word.startswith("NodeAddr=")), node)
    return socket.gethostbyname(told)
