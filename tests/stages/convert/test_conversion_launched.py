"""A conversion as a stage of a run: a rank is killed, the run resumed, and what was finished is not touched."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.artifacts import Shards
from tests.stages.conversion import REPOSITORY
from tests.stages.own_data import many_lines, write_lines
from tests.waiting import until

RECIPE = {
    "name": "mine",
    "tracking": {"uri": None},
    "stages": {
        "photos": {
            "stage": "convert_shards",
            "config": {
                "source": "jsonl",
                "root": "mine",
                "file": "data.jsonl",
                "samples_per_shard": 10,
                "processes": 1,
            },
            "resources": {"tasks_per_node": 2},
        }
    },
}


def orch(place: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *arguments], cwd=place, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def wait_for(path: Path, pattern: str, count: int) -> None:
    until(lambda: len(list(path.glob(pattern))) >= count, what=f"there are {count} of {pattern} in {path}")


def a_rank_of(place: Path) -> int:
    supervisor = json.loads((place / "runs/mine/launch.json").read_text())["pid"]
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return next(
        int(child) for child in children if b"orchestrator.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    )


@pytest.mark.slow
def test_a_run_whose_rank_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    write_lines(tmp_path / "mine", many_lines(800))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    stage = tmp_path / "runs/mine/photos"
    orch(tmp_path, "launch", "recipe.yaml", "retry.attempts=1", "--detach")
    wait_for(stage / "chunks", "*.json", 6)

    os.kill(a_rank_of(tmp_path), signal.SIGKILL)

    wait_for(tmp_path / "runs/mine", "report.html", 1)
    finished = [path.stem for path in (stage / "chunks").glob("*.json")]
    before = {name: (stage / f"shards/shard-{name}.tar").stat() for name in finished}
    assert 6 <= len(before) < 80
    orch(tmp_path, "resume", "mine")
    shards = Shards(stage / "shards")
    assert shards.damage(deep=True) == []
    assert len(list(shards.path.glob("*.tar"))) == 80
    after = {name: (shards.path / f"shard-{name}.tar").stat() for name in finished}
    assert {name: (was.st_ino, was.st_mtime_ns) for name, was in before.items()} == {
        name: (is_.st_ino, is_.st_mtime_ns) for name, is_ in after.items()
    }
    assert "sha256" not in shards.facts()
    assert f"{len(finished)} chunks of an earlier attempt" in orch(tmp_path, "logs", "mine", "photos")
