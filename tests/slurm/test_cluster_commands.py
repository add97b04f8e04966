"""`orch cluster` as its user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.devcluster import DevCluster

# the interpreter itself may lie where nobody else may read
AS_SOMEBODY = "import os, sys; os.geteuid = lambda: 1000; from orchestrator.cli import main; main()"


def test_up_status_down_and_nothing_is_left(devcluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("h")  # a short path: sockets lie below it
    name = f"o{os.getpid()}"

    made = json.loads(_orch(home, "up", "--name", name, "--nodes", "1", "--json").stdout)
    try:
        taken = _orch(home, "up", "--name", name)
        shown = json.loads(_orch(home, "status", "--name", name, "--json").stdout)
        ran = subprocess.run(
            ["srun", "hostname"], env=os.environ | made["environment"], capture_output=True, text=True, check=True
        )
    finally:
        ended = _orch(home, "down", "--name", name)
    again = _orch(home, "down", "--name", name)

    assert made["hosts"] == [f"{name}-n1"] == [ran.stdout.strip()]
    assert "holds a dev cluster already" in taken.stderr
    assert taken.returncode == 2
    assert [(node["name"], node["state"]) for node in shown["nodes"]] == [(f"{name}-n1", "idle")]
    assert all(shown["daemons"].values())
    assert "nothing of it is left" in ended.stdout
    assert not Path(made["folder"]).exists()
    assert (again.returncode, again.stdout) == (0, f"there is no cluster {name}\n")


def test_who_is_not_root_is_told_so_in_one_line() -> None:
    refused = subprocess.run(
        [sys.executable, "-c", AS_SOMEBODY, "cluster", "up"], capture_output=True, text=True, check=False
    )

    assert refused.returncode == 3
    assert "a dev cluster needs root" in refused.stderr
    assert "Traceback" not in refused.stderr


def _orch(home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "cluster", *words],
        env=os.environ | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
