"""Order of the tests, and what a test may need of the machine it runs on."""

import importlib.util
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packages import INITDB

# two workers with two threads each on two cores wait for one another; children inherit it
os.environ.setdefault("OMP_NUM_THREADS", "1")

RAW_DATA = Path(os.environ.get("ORCH_RAW_DATA", Path(__file__).parents[2] / "shared" / "data" / "raw"))

# name in @pytest.mark.needs("name") -> (is it here?, what to say where it is not)
NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "chromium": (lambda: shutil.which("chromium") is not None, "chromium on the path (python -m tests.packages)"),
    "gpu": (lambda: Path("/dev/nvidiactl").exists(), "a CUDA device"),
    "java": (lambda: shutil.which("java") is not None, "a Java runtime on the path"),
    "mlflow_auth": (lambda: importlib.util.find_spec("flask_wtf") is not None, "MLflow's login: pip install Flask-WTF"),
    "postgresql": (
        lambda: bool(INITDB) and importlib.util.find_spec("psycopg2") is not None,
        "PostgreSQL and its client: apt-get install postgresql, pip install psycopg2-binary",
    ),
    "pycocoevalcap": (
        lambda: importlib.util.find_spec("pycocoevalcap") is not None,
        "pip install '.[scores]' (104 MB)",
    ),
    "raw_data": (RAW_DATA.is_dir, f"real images and annotations at {RAW_DATA} (ORCH_RAW_DATA names another place)"),
    "root": (lambda: os.geteuid() == 0, "to be root"),
    "slurm": (lambda: shutil.which("slurmctld") is not None, "slurmctld on the path"),
    "tensorboard": (
        lambda: importlib.util.find_spec("tensorboard") is not None,
        "pip install '.[tensorboard]'",
    ),
    "torch": (lambda: importlib.util.find_spec("torch") is not None, "torch: pip install -e '.[train]'"),
    "wandb": (lambda: importlib.util.find_spec("wandb") is not None, "pip install '.[wandb]'"),
}
ROOM_ORDER = ("docs", "orchestrator", "stages", "slurm", "recipes")  # from the cheap to the dear


def pytest_configure() -> None:
    """Makes Ctrl-C heard by the commands under test: a shell starts what runs in its background without."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs fast tests before slow ones, so that a broken change is known within seconds.

    Among the slow ones whole recipes and clusters come first: the workers end together when what is left is short.
    """
    items.sort(key=_turn)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test by name where the machine lacks what the test needs."""
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            if name not in NEEDS:
                pytest.fail(f"tests/conftest.py knows no need {name!r}; it knows {', '.join(sorted(NEEDS))}")
            here, what = NEEDS[name]
            if not here():
                pytest.skip(f"needs {what}")


@pytest.fixture(scope="session")
def raw_data() -> Path:
    """Returns the folder of real images and annotations; mark the test with needs("raw_data")."""
    return RAW_DATA


def _turn(item: pytest.Item) -> tuple[bool, int]:
    parts = Path(item.path).relative_to(Path(__file__).parent).parts
    room = ROOM_ORDER.index(parts[0]) if parts[0] in ROOM_ORDER else len(ROOM_ORDER)
    slow = item.get_closest_marker("slow") is not None
    return slow, -room if slow else room
