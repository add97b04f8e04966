"""An empty MariaDB for accounting, made once on a machine and copied from then on."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from orchestrator.errors import SurroundingsError
from slurm.devcluster.daemons import MARIADB_OPTIONS
from slurm.devcluster.surroundings import PLACES


def empty_database(to: Path) -> None:
    """Puts an empty database at `to`."""
    kept = kept_at()
    if not kept.is_dir():
        _make(kept)
    shutil.copytree(kept, to)


def kept_at() -> Path:
    """Returns where the empty database of this machine's MariaDB is kept."""
    asked = ["mariadbd", "--no-defaults", "--version"]
    said = subprocess.run(asked, check=True, capture_output=True, text=True, env={"PATH": PLACES}).stdout
    return Path.home() / ".cache" / "orch" / "devcluster" / f"mariadb-{said.split(' Ver ')[1].split()[0]}"


def _make(kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".draft-") as folder:
        draft = Path(folder) / "database"
        # "normal": root needs no password, and only who may open the socket gets in
        given = ["--auth-root-authentication-method=normal", "--skip-test-db", f"--datadir={draft}"]
        made = subprocess.run(
            ["mariadb-install-db", *MARIADB_OPTIONS, *given],
            check=False,
            capture_output=True,
            text=True,
            env={"PATH": PLACES},
        )
        if made.returncode != 0:
            last = "\n".join((made.stdout + made.stderr).splitlines()[-8:])
            raise SurroundingsError(f"mariadb-install-db failed:\n{last}")
        if not kept.exists():  # somebody else may have been faster: theirs is as good
            draft.rename(kept)
