"""Hostile surroundings of a cluster: Slurm, names, rights or colleagues are in the way of orch."""

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from slurm.devcluster import DevCluster
from tests.slurm.line import Line

pytestmark = [pytest.mark.needs("root"), pytest.mark.slow]

COUNT = {"stage": "count", "config": {"steps": 3}}
NOBODY = 65534
SECRET = "hunter2-not-to-be-found"  # noqa: S105 - what must be in no file
SLURM_COMMANDS = {"sbatch", "squeue", "scontrol", "sacct", "scancel", "srun", "sinfo"}


@pytest.fixture
def line(devcluster: DevCluster, tmp_path: Path) -> Iterator[Line]:
    yield Line(tmp_path, devcluster)
    devcluster.run(["scancel", "--me"])
    devcluster.run(["scancel", f"--user={NOBODY}"])
    devcluster.wait_idle()


def test_without_slurm_in_the_path_a_launch_says_so_and_status_shows_what_is_known(line: Line) -> None:
    line.launch({"first": {"stage": "nap"}}, "--detach")
    places = [Path(place) for place in os.environ["PATH"].split(os.pathsep)]
    bare = line.folder / "bin"
    bare.mkdir()
    for name in ("git", "env", "sh", "bash"):
        found = next((place / name for place in places if (place / name).exists()), None)
        if found is not None:
            (bare / name).symlink_to(found)
    before = dict(line._environment)
    line.set(PATH=str(bare))
    shown = line("status", "toy")
    away = line.launch({"first": COUNT}, "--name", "other", code=3)
    known = line.json("status", "toy")
    line.set(**before)
    line("cancel", "toy")

    for said in (shown.stdout, away.stderr):
        assert "there is no Slurm here" in said
    assert known["silence"]
    assert known["state"] in {"queued", "running"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"partition": "nowhere", "cpu_partition": "nowhere"}, "(cluster file: partition"),
        ({"extra": {"reservation": "nobodys"}}, "reservation"),
        ({"extra": {"no-such-flag": 1}}, "extra"),
    ],
)
def test_what_sbatch_refuses_names_the_key_and_leaves_nothing_behind(
    line: Line, change: dict[str, Any], words: str
) -> None:
    chain = {"first": COUNT, "second": {"stage": "add", "inputs": {"value": "first.value"}}}
    line.describe(**change)
    refused = line.launch(chain, code=2)
    shown = line.status()

    assert words in refused.stderr
    assert "stages.first" in refused.stderr
    assert shown["ended"] is not None
    assert shown["state"] == "failed"
    line.queue_empties()


def test_a_colleagues_job_of_the_same_name_changes_nothing(line: Line) -> None:
    line.cluster.run(["sbatch", "-p", "urgent", "-N", "3", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 300"])
    line.launch({"first": COUNT}, "--detach")
    submission = json.loads((line.run_folder / "first" / "slurm" / "submission.json").read_text(encoding="utf-8"))
    as_colleague = [f"--uid={NOBODY}", f"--gid={NOBODY}", "-o", "/dev/null", "-D", "/", "--wrap", "sleep 300"]
    theirs = ["sbatch", f"--job-name={submission['name']}", *as_colleague]
    number = line.cluster.run(theirs, check=True).stdout.split()[-1]
    shown = line.stage("first")
    line("cancel", "toy")
    line.wait(line.over, 20)

    def left() -> list[str]:
        return line.cluster.run(["squeue", "-h", "-o", "%i"]).stdout.split()

    assert shown["waiting"]["job_id"] == submission["job_id"]
    line.wait(lambda: submission["job_id"] not in left(), 20)
    assert number in left()


def test_names_and_values_reach_no_shell(line: Line) -> None:
    place = line.folder / 'it\'s a $(touch pwned) `touch pwned` "run"'
    value = "$(touch pwned); 'quoted' \"twice\" \\ \n second line `touch pwned`"
    line.set(TOY_VALUE=value)
    recipe = {"first": {**COUNT, "resources": {"nodes": 2}}}
    line.describe(comment="$(touch pwned) 'x'", environment={"TOY": "$(touch pwned) 'y'"})
    line.launch(recipe, f"runs={json.dumps(str(place))}")
    shown = line.json("status", place / "toy")
    logs = line("logs", place / "toy", "first").stdout

    assert shown["state"] == "done"
    assert "done in" in logs
    assert not list(line.folder.rglob("pwned"))
    assert not Path("pwned").exists()
    for host in line.cluster.hosts:
        assert line.cluster.in_host(host, ["test", "-e", "/pwned"]).returncode == 1


def test_secrets_of_the_environment_are_in_no_file_and_no_answer_of_slurm(line: Line) -> None:
    heard, server = webhook(line.cluster.layout.login)
    hook = f"http://{line.cluster.layout.login}:{server.server_port}/{SECRET}"
    line.set(WANDB_API_KEY=SECRET, MLFLOW_TRACKING_PASSWORD=SECRET, HOOK=hook)
    notify = {"webhook_env": "HOOK", "events": ["started", "done"]}
    line.describe(notify=notify)
    line.launch({"first": {"stage": "nap", "config": {"seconds": 8}}}, "--detach")
    number = line.wait(lambda: line.stage("first")["attempts"])[0]["job_id"]
    told = line.cluster.run(["scontrol", "show", "job", "-dd", number]).stdout
    script = line.cluster.run(["scontrol", "write", "batch_script", number, "-"]).stdout
    line.wait(line.over, 60)
    line.wait(lambda: len(heard) == 2)
    server.shutdown()
    server.server_close()
    accounted = line.cluster.run(["sacct", "-j", number, "-o", "ALL", "-P"]).stdout
    folder = line.run_folder / "first" / "slurm"
    files = [path for path in line.run_folder.rglob("*") if path.is_file()]

    assert line.status()["state"] == "done"
    assert [message["event"] for message in heard] == ["started", "done"]
    assert "JobId=" in told
    assert "submitit" in script
    for said in (told, script, accounted):
        assert SECRET not in said
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def webhook(address: str) -> tuple[list[dict[str, Any]], ThreadingHTTPServer]:
    """Starts a server that hears what jobs tell."""
    heard: list[dict[str, Any]] = []

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((address, 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return heard, server


def test_who_may_not_write_looks_and_is_told_why_he_cannot_launch(line: Line) -> None:
    line.launch({"first": {"stage": "nap"}}, "--detach")
    line.wait(lambda: line.stage("first")["attempts"])
    looked, refused, cancelled = (
        read_only(line, *arguments)
        for arguments in (
            ("status", "toy"),
            ("launch", "recipe.yaml", "--on", "cluster.yaml", "--name", "other"),
            ("cancel", "toy"),
        )
    )
    line("cancel", "toy")
    line.wait(line.over, 30)

    assert (looked.returncode, "toy: running" in looked.stdout) == (0, True), looked.stderr
    for said in (refused, cancelled):
        assert said.returncode == 3, said.stderr
        assert "Traceback" not in said.stderr
        assert "Read-only file system" in said.stderr
    line.queue_empties()


def read_only(line: Line, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command in a world in which nothing can be written to the folder of the runs."""
    script = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; shift; exec "$@"'
    world = ["unshare", "--mount", "--propagation=private", "sh", "-ec", script, "sh", str(line.folder / "runs")]
    command = [*world, sys.executable, "-m", "orchestrator.cli", *arguments]
    return subprocess.run(
        command, cwd=line.folder, env=line._environment, text=True, capture_output=True, check=False, timeout=60
    )
