"""Who wants a run that is held waits for somebody who only settles it, and not for one who works on it."""

import threading
import time
from pathlib import Path

import pytest

from orchestrator.errors import RunBusy
from orchestrator.launcher import take
from orchestrator.run import Run


@pytest.mark.parametrize("settler", ["orch status", "orch keeper"])
def test_whoever_only_settles_is_waited_for(tmp_path: Path, settler: str) -> None:
    held = Run(tmp_path).lock(settler)
    threading.Timer(1.5, held.close).start()

    with take(Run(tmp_path), "orch launch"):
        holder = Run(tmp_path).holder()

    assert holder is not None
    assert holder["command"] == "orch launch"


def test_whoever_works_is_named_soon(tmp_path: Path) -> None:
    began = time.monotonic()

    with Run(tmp_path).lock("orch supervisor"), pytest.raises(RunBusy, match="orch supervisor"):
        take(Run(tmp_path), "orch launch")

    assert time.monotonic() - began < 20


def test_a_patience_of_a_moment_is_kept_with_a_settler_too(tmp_path: Path) -> None:
    with Run(tmp_path).lock("orch keeper"), pytest.raises(RunBusy):
        take(Run(tmp_path), "orch status", patience_s=0.3)
