"""What a dev cluster needs of the machine, and how it comes there."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import SurroundingsError

POLICY = Path("/usr/sbin/policy-rc.d")  # asked by Debian before it starts a service
# a program of each package, and the package
PROGRAMS = {
    "ip": "iproute2",
    "mariadbd": "mariadb-server",
    "munged": "munge",
    "sbatch": "slurm-client",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurmdbd": "slurmdbd",
}
PLACES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def lacking() -> list[str]:
    """Says in sentences what this machine lacks for a dev cluster; nothing if it is fit."""
    if sys.platform != "linux":
        return [f"a dev cluster needs Linux's namespaces; this is {sys.platform}"]
    found, packages = [], lacking_packages()
    if os.geteuid() != 0:
        found.append("a dev cluster needs root, for namespaces and network interfaces: try with sudo")
    if packages:
        found.append(f"Debian packages are missing: apt-get install -y --no-install-recommends {' '.join(packages)}")
    return found or _refused()


def lacking_packages() -> list[str]:
    """Lists the Debian packages whose programs are not here."""
    return sorted({package for program, package in PROGRAMS.items() if shutil.which(program, path=PLACES) is None})


def require() -> None:
    """Raises, naming all that is missing, where no dev cluster can run."""
    if missing := lacking():
        raise SurroundingsError("\n".join([*missing, "`orch cluster up --install` installs the packages (as root)."]))


def install() -> None:
    """Installs the Debian packages that are missing, without starting any of their services."""
    if not (packages := lacking_packages()):
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise SurroundingsError(f"installing {' '.join(packages)} needs root and apt-get")
    with _services_left_alone():
        _apt("update", "-qq")
        _apt("install", "-y", "-qq", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120", *packages)


def _refused() -> list[str]:
    """Says what the kernel refuses; only trying tells whether root may make namespaces and bridges here."""
    apart = ["unshare", "--pid", "--fork", "--mount", "--net", "--uts", "--ipc"]
    tried = subprocess.run(
        [*apart, "ip", "link", "add", "probe", "type", "bridge"], check=False, capture_output=True, text=True
    )
    if tried.returncode == 0:
        return []
    return [f"this machine lets root make no namespaces or no bridges: {tried.stderr.strip()}"]


def _apt(*words: str) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(["apt-get", *words], check=False, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
        raise SurroundingsError(f"apt-get {' '.join(words)} failed:\n{last}")


@contextmanager
def _services_left_alone() -> Iterator[None]:
    """Tells Debian not to start what it installs: a cluster starts its own daemons, in its own hosts."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)
