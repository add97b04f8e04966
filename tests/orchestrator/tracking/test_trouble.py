"""A real MLflow server behind a door that breaks, dawdles, loses answers and asks for passwords: all arrives once."""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.errors import TrackingAway
from orchestrator.journal import read_events
from orchestrator.tracking.forwarder import NO_REPEATS, SETTINGS, forward
from orchestrator.tracking.journals import accepted_name
from orchestrator.tracking.ledger import read_ledger
from slurm.drill.server import TrackingServer
from tests.command_line import REPOSITORY, Orch
from tests.packages import INITDB
from tests.tracked_run import TrackedRun
from tests.unreliable import Door, Mood
from tests.waiting import until

PATIENCE_S = 120.0  # all is slow on a busy machine
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every test begin with the forwarder's own settings of MLflow, and lose no time between two tries."""
    for module in ("pace", "forwarder"):
        monkeypatch.setattr(f"orchestrator.tracking.{module}.LOOK_EVERY_S", 0.05)
    monkeypatch.setattr("orchestrator.tracking.pace.REST", 0.0)
    for name in SETTINGS | NO_REPEATS:
        monkeypatch.delenv(name, raising=False)


def told_once(uri: str, directory: Path, stage: str) -> None:
    """Checks that MLflow has every number of a stage's journal once, with its value, and one run for the stage."""
    client, run_id = MlflowClient(tracking_uri=uri), read_ledger(directory / stage)["mlflow_run_id"]
    expected: dict[str, dict[int, float]] = {}
    for event in read_events(directory / stage):
        values = event["values"] if event["event"] == "metrics" else {}
        if event["event"] == "loss":
            values = {"loss_every_step": event["value"]}
        for name, value in values.items():
            expected.setdefault(accepted_name(name), {}).setdefault(event["step"], value)
    assert expected
    for key, points in expected.items():
        history = client.get_metric_history(run_id, key)
        assert sorted((point.step, point.value) for point in history) == sorted(points.items())
    runs = client.search_runs([client.get_run(run_id).info.experiment_id], f"tags.`orch.run` = '{directory}'")
    assert set(Counter(run.info.run_name for run in runs).values()) == {1}


def told_in_the_end(directory: Path, *, tries: int) -> int:
    """Tells MLflow again and again until it took everything; returns how often it could not."""
    for failures in range(tries):
        try:
            forward(directory, follow=False)
        except TrackingAway:
            continue
        return failures
    pytest.fail(f"MLflow was not told everything in {tries} tries")


def test_answers_that_are_lost_on_the_way_double_nothing(server: TrackingServer, tmp_path: Path) -> None:
    with Door(server.uri) as door:
        run = TrackedRun(tmp_path / "lost answers", door.uri, ["grounded", "align"])
        run.whole()
        door.mood = "forgetful"

        failures = told_in_the_end(run.directory, tries=200)

    client = MlflowClient(tracking_uri=server.uri)
    child = client.get_run(read_ledger(run.directory / "align")["mlflow_run_id"])
    runs = client.search_runs([child.info.experiment_id])
    mine = [found for found in runs if found.data.tags.get("orch.key") is not None]
    models = client.search_logged_models([child.info.experiment_id])
    assert failures > 5
    assert sorted(found.info.run_name for found in mine) == ["align", "grounded", "lost answers"]
    assert len(models) == len(child.outputs.model_outputs) == 1
    assert len(child.inputs.dataset_inputs) == 1
    assert child.info.status == "FINISHED"
    told_once(server.uri, run.directory, "align")


@pytest.mark.parametrize("mood", ["broken", "slow"])
def test_what_a_server_in_trouble_did_not_hear_it_hears_once_afterwards(
    mood: Mood, server: TrackingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with Door(server.uri, delay_s=2.5) as door:
        run = TrackedRun(tmp_path / mood, door.uri, ["grounded", "align"])
        run.begin("align")
        run.steps("align", 1, 15)
        told_in_the_end(run.directory, tries=1)
        door.mood = mood
        run.steps("align", 16, 30)
        began = time.monotonic()
        with pytest.raises(TrackingAway):
            forward(run.directory, follow=False)
        took_s = time.monotonic() - began
        run.finish("align")
        run.end()
        door.mood = "fine"

        told_in_the_end(run.directory, tries=3)

    assert took_s < 30
    told_once(server.uri, run.directory, "align")


def sync(directory: Path, user: str, password: str) -> "subprocess.CompletedProcess[str]":
    environment = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "sync", str(directory)],
        env={**os.environ, **environment}, cwd=REPOSITORY, text=True, capture_output=True, timeout=PATIENCE_S,
        check=False,
    )  # fmt: skip


def test_a_password_that_expired_is_named_and_nothing_is_lost(server: TrackingServer, tmp_path: Path) -> None:
    with Door(server.uri, password="ada:sesame") as door:  # noqa: S106 - of this test
        door.mood = "strict"
        expired_then_right(door.uri, server.uri, tmp_path, user="ada", right="sesame")


@pytest.mark.needs("mlflow_auth")
def test_mlflow_with_its_own_login_is_told_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "auth.ini"
    settings.write_text(
        f"[mlflow]\ndatabase_uri = sqlite:///{tmp_path}/auth.db\nadmin_username = ada\nadmin_password = sesame, open\n"
        "default_permission = READ\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    secrets = {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test"}
    server = TrackingServer(tmp_path, app="basic-auth", more=secrets)
    try:
        server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "sesame, open")
        expired_then_right(server.uri, server.uri, tmp_path, user="ada", right="sesame, open")
    finally:
        server.kill()


def expired_then_right(uri: str, behind: str, tmp_path: Path, *, user: str, right: str) -> None:
    run = TrackedRun(tmp_path / "login", uri, ["grounded", "align"])
    run.whole()

    wrong = sync(run.directory, user, "yesterdays")
    again = sync(run.directory, user, right)
    once_more = sync(run.directory, user, right)

    assert wrong.returncode == TrackingAway.exit_code
    assert "MLFLOW_TRACKING_PASSWORD" in wrong.stderr
    assert "yesterdays" not in wrong.stdout + wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert (again.returncode, once_more.returncode) == (0, 0), again.stderr + once_more.stderr
    told_once(behind, run.directory, "align")
    told = "".join(path.read_text() for path in run.directory.rglob("*.json"))
    assert right not in told


@pytest.fixture
def postgresql() -> Iterator[str]:
    """Lends an empty PostgreSQL, which will not run as root; yields its address."""
    commands = INITDB[-1].parent
    owner = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    place = Path(tempfile.mkdtemp(prefix="orch-postgresql-"))
    if owner:
        shutil.chown(place, **owner)
    begin = [commands / "initdb", "-D", place / "data", "-U", "ada", "-A", "trust", "--no-sync"]
    options = f"-c listen_addresses= -c unix_socket_directories={place} -c fsync=off"
    try:
        subprocess.run(begin, cwd=place, check=True, capture_output=True, timeout=PATIENCE_S, **owner)
        start = [commands / "pg_ctl", "-D", place / "data", "-w", "-l", place / "log", "-o", options, "start"]
        subprocess.run(start, cwd=place, check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE_S, **owner)
        yield f"postgresql+psycopg2://ada@/postgres?host={place}"
    finally:
        stop = [commands / "pg_ctl", "-D", place / "data", "-m", "immediate", "stop"]
        subprocess.run(stop, cwd=place, check=False, stdout=subprocess.DEVNULL, timeout=PATIENCE_S, **owner)
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.needs("postgresql")
def test_a_server_on_postgresql_is_told_everything_once(postgresql: str, tmp_path: Path) -> None:
    server = TrackingServer(tmp_path, store=postgresql)
    try:
        server.start()
        with Door(server.uri) as door:
            run = TrackedRun(tmp_path / "lost answers", door.uri, ["grounded", "align"])
            run.whole()
            door.mood = "forgetful"
            failures = told_in_the_end(run.directory, tries=200)

        assert failures > 5
        told_once(server.uri, run.directory, "align")
    finally:
        server.kill()


def ends_well(process: "subprocess.Popen[str]") -> bool:
    process.communicate()
    return process.returncode == 0


def trouble(server: TrackingServer, chance: random.Random) -> None:
    """Kills a server at a random moment, leaves it dead for a while, and at times kills it as it comes up."""
    time.sleep(chance.uniform(0, 2))
    server.kill()
    time.sleep(chance.uniform(0, 3))
    if chance.random() < 1 / 3:
        server.start(patience_s=0)
        time.sleep(chance.uniform(0, 3))
        server.kill()


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(3, marks=pytest.mark.timeout(900)),
        pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(3600)]),
    ],
)
def test_no_point_of_two_ranks_is_lost_or_doubled_while_the_server_is_killed_at_random(
    rounds: int, server: TrackingServer, tmp_path: Path
) -> None:
    chance, orch = random.Random(rounds), Orch(tmp_path, catalog="tests.toytraining")
    config = {"steps": 10**6, "save_every": 100, "log_every": 1, "slow": {"0": 0.03}}
    stages = {"train": {"stage": "train", "config": config, "resources": {"tasks_per_node": 2}}}
    directory = orch.run_folder
    orch("launch", orch.recipe(stages, tracking={"uri": server.uri}), "--detach")
    delivered = [0]

    def more_delivered() -> bool:
        return bool(read_ledger(directory / "train").get("last_steps", {}).get("loss", 0) > delivered[0])

    try:
        for _ in range(rounds):
            until(more_delivered, PATIENCE_S, what="points are delivered")
            trouble(server, chance)
            delivered[0] = read_ledger(directory / "train")["last_steps"]["loss"]
            server.start()
        until(more_delivered, PATIENCE_S, what="points are delivered again")
    finally:
        orch("cancel", "toy")
        orch.wait(orch.over, PATIENCE_S)
    # the launch's own forwarder may still be telling: much was left after the last kill, and it is a patient one
    until(lambda: ends_well(orch.start("sync", "toy")), PATIENCE_S, what="everything is told")

    child = MlflowClient(tracking_uri=server.uri).get_run(read_ledger(directory / "train")["mlflow_run_id"])
    assert child.info.status == "KILLED"
    assert json.loads(orch("status", "toy", "--json").stdout)["ended"]
    told_once(server.uri, directory, "train")


REGISTER = {
    "name": "", "stage": "export", "alias": "champion", "when": {"score": {"gcg": {"miou": ">= 0.5"}}},
}  # fmt: skip
NAMES = ("score", "export")


def versions(server: TrackingServer, name: str) -> list[str]:
    return [str(one.version) for one in MlflowClient(tracking_uri=server.uri).search_model_versions(f"name = '{name}'")]


def tags(server: TrackingServer, directory: Path) -> dict[str, str]:
    client = MlflowClient(tracking_uri=server.uri)
    return dict(client.get_run(read_ledger(directory)["mlflow_run_id"]).data.tags)


def test_answers_of_the_registry_that_are_lost_on_the_way_make_no_second_version(
    server: TrackingServer, tmp_path: Path
) -> None:
    with Door(server.uri) as door:
        run = TrackedRun(tmp_path / "lost", door.uri, NAMES)
        run.whole()
        forward(run.directory, follow=False)  # all but the registration
        run.register = {**REGISTER, "name": "lost"}
        run.launch(door.uri)
        run.end()
        door.mood = "forgetful"

        failures = told_in_the_end(run.directory, tries=100)

    assert failures > 1
    assert versions(server, "lost") == ["1"]


def test_a_registry_that_lets_nobody_in_keeps_nothing_else_from_mlflow(server: TrackingServer, tmp_path: Path) -> None:
    with Door(server.uri) as door:
        run = TrackedRun(tmp_path / "no entry", door.uri, NAMES, {**REGISTER, "name": "no entry"})
        run.whole()
        door.mood = "unregistering"
        delivery = forward(run.directory, follow=False)
        refused, parent = tags(server, run.directory / "export"), read_ledger(run.directory)["status"]
        door.mood = "fine"

        later = forward(run.directory, follow=False)

    assert (delivery.complete, parent) == (True, "FINISHED")
    assert refused["orch.registered"] == "no"
    assert "may not write" in refused["orch.registered.why"]
    assert later.message.endswith("registered as no entry/1")
    assert versions(server, "no entry") == ["1"]
