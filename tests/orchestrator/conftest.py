"""Fixtures of the tests of the orchestrator."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import notify
from tests.command_line import Orch
from tests.listener import Listener, listening


@pytest.fixture
def orch(tmp_path: Path) -> Iterator[Orch]:
    """Gives a command line; whatever it left running ends with the test."""
    command_line = Orch(tmp_path)
    yield command_line
    path = command_line.run_folder / "launch.json"
    if path.is_file():
        launch = json.loads(path.read_text(encoding="utf-8"))
        if launch["pid"] and launch["ended"] is None:
            try:
                os.kill(launch["pid"], signal.SIGKILL)
            except ProcessLookupError:
                return


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """Starts a webhook, whose address is in TOY_WEBHOOK; in this process nobody waits long for it."""
    with listening() as server:
        monkeypatch.setenv("TOY_WEBHOOK", server.address)
        monkeypatch.setattr(notify, "TRY_S", 0.5)
        monkeypatch.setattr(notify, "BETWEEN_TRIES_S", 0.05)
        yield server


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mounts a disk of 24 MiB, where the machine lets us."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=False)
