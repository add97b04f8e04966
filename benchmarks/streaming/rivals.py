"""The libraries under test, each in a process of its own; the peers in a virtual environment that is made once."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_ROOT = Path(__file__).parents[2]
_PINS = Path(__file__).with_name("peers.txt")
_PROGRAMS = "benchmarks.streaming.programs"
OURS = "orch"
PEERS: Mapping[str, str] = {  # name -> program; the name is that of the distribution, for its version
    "webdataset": "read_webdataset",
    "megatron-energon": "read_energon",
    "mosaicml-streaming": "read_mosaic",
    "litdata": "read_litdata",
}


class Cannot(Exception):
    """A library cannot do what it was asked; the message is its own."""


class Rival:
    """A library in a process of its own that stays, so that no measurement pays for imports."""

    def __init__(self, name: str, python: Path, log: Path) -> None:
        """Starts it; what it prints goes to the log."""
        self.name = name
        program = "read_orch" if name == OURS else PEERS[name]
        environment = os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [str(python), "-m", f"{_PROGRAMS}.{program}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=file, text=True, env=environment, cwd=log.parent,
            )  # fmt: skip
        self._log = log

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Asks, and waits for the answer; raises Cannot."""
        assert self._process.stdin is not None  # noqa: S101  # we made it a pipe
        assert self._process.stdout is not None  # noqa: S101
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            last = self._log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
            raise Cannot(f"its process ended: {last[:200]}")
        answer: dict[str, Any] = json.loads(line)
        if "cannot" in answer:
            raise Cannot(" ".join(answer["cannot"].split())[:200])
        return answer

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Ends the process."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # it ended by itself
                self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def environment_of_peers() -> Path:
    """Returns the python of the peers' environment; makes it if it is not there yet, which takes minutes and 2 GB."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "orch" / "benchmarks"
    digest = hashlib.sha256(_PINS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache / f"peers-{digest}"
    python, ready = folder / "bin" / "python", folder / ".ready"
    if ready.is_file():
        return python
    print(f"making the peers' environment in {folder} (once; a few minutes, 2 GB) ...", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    install = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps", "-r", str(_PINS)]
    try:
        subprocess.run(install, check=True)
    except subprocess.CalledProcessError:
        shutil.rmtree(folder, ignore_errors=True)
        raise SystemExit("the peers could not be installed; --peers none measures ours alone") from None
    ready.touch()
    return python


def versions_of_peers(python: Path, names: Sequence[str]) -> dict[str, str]:
    """Asks the peers' environment for their versions."""
    code = "import json, sys, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    shown = subprocess.run([str(python), "-c", code, *names], check=True, capture_output=True, text=True).stdout
    versions: dict[str, str] = json.loads(shown)
    return versions
