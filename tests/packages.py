"""Installs what tests need of Debian besides Slurm, where it may: a browser, Java, a database that MLflow can keep.

`python -m tests.packages`; it never fails: tests that lack something are skipped by name.
"""

import os
import shutil
import subprocess
from pathlib import Path

from tests.browser import CHROMIUM

POSTGRESQL, JAVA = "postgresql", "default-jre-headless"  # METEOR is a program for Java
# Debian keeps PostgreSQL's programs off the path
INITDB = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def main() -> None:
    """Installs what is missing, or says that it stays missing."""
    java = shutil.which("java") is not None
    here = {CHROMIUM: shutil.which(CHROMIUM) is not None, POSTGRESQL: bool(INITDB), JAVA: java}
    missing = [package for package, found in here.items() if not found]
    if not missing:
        return
    wanted = ", ".join(missing)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"Without Debian's {wanted} the tests that need them will be skipped.")
        return
    print(f"Installing Debian's {wanted} for tests ...", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (("update", "-qq"), ("install", "-y", "-qq", "--no-install-recommends", *missing)):
        command = ["apt-get", "-o", "DPkg::Lock::Timeout=120", *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            print(f"{' '.join(command)} failed; the tests that need {wanted} will be skipped.\n{done.stderr[-500:]}")
            return


if __name__ == "__main__":
    main()
