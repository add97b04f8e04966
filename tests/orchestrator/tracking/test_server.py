"""A real MLflow server that dies in the middle of a run: nothing is lost, nothing comes twice, nobody waits."""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.run import Run
from orchestrator.tracking.forwarder import forward
from orchestrator.tracking.ledger import read_ledger
from slurm.drill.server import TrackingServer
from tests.tracked_run import TrackedRun
from tests.waiting import until

PATIENCE_S = 120.0  # all is slow on a busy machine


@pytest.fixture
def second_server(tmp_path: Path) -> Iterator[TrackingServer]:
    """Shows a database that a forwarder wrote without any server."""
    made = TrackingServer(tmp_path, store=f"sqlite:///{tmp_path}/mlflow.db")
    yield made
    made.kill()


def start_forwarder(run: Path) -> subprocess.Popen[bytes]:
    with (run / "logs" / "tracking.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.tracking", str(run), "--follow"],
            stdout=log,
            stderr=log,
            cwd=Path.cwd(),
        )


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_point_arrives_once_though_server_and_forwarder_are_killed(
    server: TrackingServer, tmp_path: Path
) -> None:
    run = TrackedRun(tmp_path / "tracked", server.uri, ["grounded", "align"])
    stage = run.directory / "align"
    with Run(run.directory).lock("a test"):
        forwarder = start_forwarder(run.directory)
        run.begin("grounded")
        run.finish("grounded")
        run.begin("align")
        run.steps("align", 1, 10)
        until(
            lambda: read_ledger(stage).get("last_steps", {}).get("loss") == 10,
            PATIENCE_S,
            what="ten steps are delivered",
        )
        server.kill()
        run.steps("align", 11, 20)
        time.sleep(1.5)  # it tries, and fails
        forwarder.kill()
        forwarder.wait()
        forwarder = start_forwarder(run.directory)
        run.steps("align", 21, 30)
        server.start()
        until(
            lambda: read_ledger(stage).get("last_steps", {}).get("loss") == 30,
            PATIENCE_S,
            what="thirty steps are delivered",
        )
        run.steps("align", 31, 40)
        run.finish("align")
        (run.directory / "report.html").write_text("<h1>report</h1>")
        run.end()
    code = forwarder.wait(PATIENCE_S)

    client = MlflowClient(tracking_uri=server.uri)
    parent, child = (client.get_run(read_ledger(folder)["mlflow_run_id"]) for folder in (run.directory, stage))
    history = client.get_metric_history(child.info.run_id, "loss")
    assert code == 0
    assert [point.step for point in sorted(history, key=lambda point: point.timestamp)] == list(range(1, 41))
    assert len(client.search_runs([parent.info.experiment_id], f"tags.`orch.run` = '{run.directory}'")) == 3
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert len(child.outputs.model_outputs) == 1
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["recipe.yaml", "report.html"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_server_that_stays_away_is_given_up_quietly_and_sync_tells_the_rest(
    server: TrackingServer, tmp_path: Path
) -> None:
    run = TrackedRun(tmp_path / "tracked", server.uri, ["grounded", "align"])
    server.kill()
    run.whole()
    started = time.monotonic()

    gave_up = start_forwarder(run.directory).wait(PATIENCE_S)
    waited_s = time.monotonic() - started
    server.start()
    synced = subprocess.run([sys.executable, "-m", "orchestrator.tracking", str(run.directory)], check=False).returncode

    log = (run.directory / "logs" / "tracking.log").read_text()
    child = MlflowClient(tracking_uri=server.uri).get_run(read_ledger(run.directory / "align")["mlflow_run_id"])
    assert (gave_up, synced) == (3, 0)
    assert waited_s < 90
    assert "Nothing is lost: orch sync" in log
    assert "Traceback" not in log
    assert child.info.status == "FINISHED"
    assert child.data.metrics["loss"] == pytest.approx(1 / 40)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_command_that_a_launch_prints_shows_the_pictures(second_server: TrackingServer, tmp_path: Path) -> None:
    run = TrackedRun(tmp_path / "tracked", f"sqlite:///{tmp_path}/mlflow.db")
    run.whole()
    forward(run.directory, follow=False)
    run_id = read_ledger(run.directory / "score")["mlflow_run_id"]

    second_server.start()
    page = f"{second_server.uri}/get-artifact?path=report/pictures/scene.png&run_uuid={run_id}"
    with urllib.request.urlopen(page, timeout=30) as answer:  # noqa: S310 - our own server
        picture = answer.read()

    assert picture == (run.directory / "score" / "report" / "pictures" / "scene.png").read_bytes()
