"""What MLflow knows of a run after the forwarder has told it: a real SQLite store, read back through the client."""

import fcntl
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from orchestrator.errors import InputError, RunBusy, TrackingAway
from orchestrator.run import Run
from orchestrator.tracking.forwarder import LOCK, forward
from orchestrator.tracking.ledger import TRACKING, read_ledger
from tests.tracked_run import TrackedRun


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Names one database for all tests of this file: its tables take seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(scope="module")
def whole(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs four stages to the end and tells MLflow."""
    run = TrackedRun(tmp_path_factory.mktemp("runs") / "tracked", uri)
    run.whole()
    forward(run.directory, follow=False)
    return run.directory


def told(uri: str, directory: Path) -> MlflowRun:
    return MlflowClient(tracking_uri=uri).get_run(read_ledger(directory)["mlflow_run_id"])


def curve(uri: str, directory: Path, key: str = "loss") -> list[tuple[int, float]]:
    history = MlflowClient(tracking_uri=uri).get_metric_history(read_ledger(directory)["mlflow_run_id"], key)
    return sorted((point.step, point.value) for point in history)


def test_a_recipe_is_one_parent_run_with_a_child_for_each_stage(uri: str, whole: Path) -> None:
    parent = told(uri, whole)

    children = MlflowClient(tracking_uri=uri).search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )

    assert sorted(child.info.run_name for child in children) == ["align", "gcg", "grounded", "score"]
    assert {child.info.status for child in (*children, parent)} == {"FINISHED"}
    assert parent.info.run_name == "tracked"
    assert parent.info.user_id == "ada" or parent.data.tags["mlflow.user"] == "ada"


def test_every_step_arrives_with_its_own_time(uri: str, whole: Path) -> None:
    journal = [json.loads(line) for line in (whole / "gcg" / "journal.jsonl").read_text().splitlines()]

    history = MlflowClient(tracking_uri=uri).get_metric_history(read_ledger(whole / "gcg")["mlflow_run_id"], "loss")

    expected = [(event["step"], event["values"]["loss"], int(event["time"] * 1000)) for event in journal]
    assert sorted((point.step, point.value, point.timestamp) for point in history) == expected


def test_the_typed_config_becomes_parameters_within_the_limits_of_mlflow(uri: str, whole: Path) -> None:
    params = told(uri, whole / "gcg").data.params

    assert params["train.optim.lr"] == "0.001"
    assert params["layers"] == "[1, 2]"
    assert params["llm"] == "null"
    assert params["seed"] == "17"
    assert len(params["prompt"]) == 6000


def test_tags_say_what_code_and_plan_made_a_stage(uri: str, whole: Path) -> None:
    tags = told(uri, whole / "gcg").data.tags

    assert tags["orch.fingerprint"] == "gcg-fingerprint"
    assert (tags["orch.commit"], tags["orch.dirty"]) == ("c0ffee", "true")
    assert (tags["orch.recipe"], tags["orch.stage"], tags["orch.attempts"]) == ("tracked", "toy_train", "1")
    assert tags["orch.attempt.1"].startswith("done steps 0 to 40")


def test_shards_are_data_set_inputs_with_the_digest_of_their_manifest(uri: str, whole: Path) -> None:
    manifest = json.loads((whole / "grounded" / "shards" / "manifest.json").read_text())

    (given,) = told(uri, whole / "gcg").inputs.dataset_inputs

    assert given.dataset.name == "grounded.shards"
    assert given.dataset.digest == manifest["digest"][:36]
    assert json.loads(given.dataset.source) == {"uri": str(whole / "grounded" / "shards")}
    assert json.loads(given.dataset.profile)["counts"] == {"regions": 310}
    assert {tag.key: tag.value for tag in given.tags}["mlflow.data.context"] == "training"


def test_a_checkpoint_is_a_model_that_one_stage_makes_and_the_next_reads(uri: str, whole: Path) -> None:
    (made,) = told(uri, whole / "align").outputs.model_outputs
    (read,) = told(uri, whole / "gcg").inputs.model_inputs
    model = MlflowClient(tracking_uri=uri).get_logged_model(made.model_id)

    assert made.model_id == read.model_id
    assert made.step == 40
    assert (model.name, model.model_type, model.status) == ("tracked-align-model", "toy", "READY")
    assert model.source_run_id == read_ledger(whole / "align")["mlflow_run_id"]
    assert model.params["towers.image"] == "2"


def test_pictures_and_the_report_lie_beside_the_database(uri: str, whole: Path) -> None:
    client = MlflowClient(tracking_uri=uri)
    parent, score = told(uri, whole), told(uri, whole / "score")

    pictures = client.list_artifacts(score.info.run_id, "report/pictures")

    assert [picture.path for picture in pictures] == ["report/pictures/scene.png"]
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {"recipe.yaml", "report.html"}
    beside = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    assert Path(parent.info.artifact_uri).is_relative_to(beside)


def test_broken_rules_are_tags_and_their_list_an_artifact(uri: str, tmp_path: Path) -> None:
    run = TrackedRun(tmp_path / "tracked", uri, ["grounded", "align"])
    run.alert("align", "throughput_drop", "50 samples/s")
    run.alert("align", "throughput_drop", "", state="over")
    run.alert("align", "throughput_drop", "40 samples/s")
    run.alert("align", "loss_nan", "the loss of step 3 is nan")
    run.whole()

    forward(run.directory, follow=False)

    stage, recipe = told(uri, run.directory / "align"), told(uri, run.directory)
    expected = {
        "orch.alerts": "loss_nan, throughput_drop",
        "orch.alert.loss_nan": "attempt 1: the loss of step 3 is nan",
        "orch.alert.throughput_drop": "2 times, the last: attempt 1: 40 samples/s",
    }
    files = MlflowClient(tracking_uri=uri).list_artifacts(stage.info.run_id)
    assert {name: value for name, value in stage.data.tags.items() if "orch.alert" in name} == expected
    assert recipe.data.tags["orch.alerts"] == "align: loss_nan, throughput_drop"
    assert "alerts.jsonl" in {file.path for file in files}
    assert "orch.alerts" not in told(uri, run.directory / "grounded").data.tags


def test_telling_again_tells_nothing(uri: str, whole: Path) -> None:
    before = (whole / "gcg" / TRACKING).read_bytes()
    lines = curve(uri, whole / "gcg")

    delivery = forward(whole, follow=False)

    assert (delivery.points, delivery.complete) == (0, True)
    assert (whole / "gcg" / TRACKING).read_bytes() == before
    assert curve(uri, whole / "gcg") == lines


def test_a_forwarder_that_forgot_everything_doubles_nothing(uri: str, tmp_path: Path) -> None:
    run = TrackedRun(tmp_path / "tracked", uri, ["grounded", "align"])
    run.whole()
    forward(run.directory, follow=False)
    first = told(uri, run.directory / "align")
    for folder in (run.directory, run.directory / "grounded", run.directory / "align"):
        # as if it had been killed after MLflow took everything and before it could note any of it
        (folder / TRACKING).write_text(
            json.dumps({"uri": read_ledger(folder)["uri"], "key": read_ledger(folder)["key"]})
        )

    sent = forward(run.directory, follow=False).points

    again = told(uri, run.directory / "align")
    assert again.info.run_id == first.info.run_id
    assert sent < 80  # where the hours went; of a curve nothing is sent again: a repeated batch costs MLflow dearly
    assert len(curve(uri, run.directory / "align")) == 40
    assert again.outputs.model_outputs == first.outputs.model_outputs
    assert len(again.inputs.dataset_inputs) == 1
    parents = MlflowClient(tracking_uri=uri).search_runs(
        [again.info.experiment_id], f"tags.`orch.run` = '{run.directory}' and tags.`orch.kind` = 'recipe'"
    )
    assert len(parents) == 1


def test_a_killed_stage_is_killed_and_goes_back_to_running_with_one_gapless_curve(uri: str, tmp_path: Path) -> None:
    run = TrackedRun(tmp_path / "tracked", uri, ["grounded", "align"])
    stage = run.directory / "align"
    run.begin("grounded")
    run.finish("grounded")
    run.begin("align")
    run.steps("align", 1, 25)
    run.fail("align", "unknown", "rank 1: it was killed from outside (SIGKILL)")
    run.end()
    forward(run.directory, follow=False)
    killed, parent = told(uri, stage), told(uri, run.directory)
    run.launch(uri)
    run.begin("align")
    run.steps("align", 21, 30)  # from the checkpoint of step 20
    statuses = [killed.info.status, parent.info.status]

    run.steps("align", 31, 40)
    run.finish("align")
    run.end()
    forward(run.directory, follow=False)

    after = told(uri, stage)
    assert [*statuses, after.info.status] == ["KILLED", "KILLED", "FINISHED"]
    assert after.info.run_id == killed.info.run_id
    assert [step for step, _ in curve(uri, stage)] == list(range(1, 41))
    assert after.data.tags["orch.attempts"] == "2"
    assert after.data.tags["orch.redone_points"] == "10"
    assert "killed from outside" in after.data.tags["orch.attempt.1"]


def test_where_the_hours_went_is_told_at_each_end_and_can_be_compared(uri: str, tmp_path: Path) -> None:
    run = TrackedRun(tmp_path / "tracked", uri, ["align"])
    run.begin("align")
    run.steps("align", 1, 5)
    with Run(run.directory).lock("test"):  # somebody works on it
        forward(run.directory, follow=False)
    running = told(uri, run.directory / "align")
    run.fail("align", "hang", "rank 1 hangs")
    forward(run.directory, follow=False)
    failed = told(uri, run.directory / "align")
    run.begin("align")
    run.steps("align", 1, 40)
    run.finish("align")
    run.end()
    forward(run.directory, follow=False)
    again = forward(run.directory, follow=False)
    done, parent = told(uri, run.directory / "align"), told(uri, run.directory)

    held = "goodput/held_process_hours"
    assert held not in running.data.metrics
    assert (failed.data.metrics["goodput/useful"], failed.data.metrics[held] > 0) == (0.0, True)
    assert 0 < done.data.metrics["goodput/useful"] < 1
    assert parent.data.metrics[held] == pytest.approx(done.data.metrics[held])
    assert [step for step, _ in curve(uri, run.directory / "align", held)] == [1, 2]
    assert {step for step, _ in curve(uri, run.directory / "align", "goodput/attempt/held_process_hours")} == {1, 2}
    assert again.points == 0


@pytest.mark.parametrize(
    ("cause", "detail", "state", "status"),
    [
        ("code_error", "ValueError: no", "failed", "FAILED"),
        ("diverged", "the loss is nan", "failed", "FAILED"),
        ("cancelled", "cancelled by ada", "cancelled", "KILLED"),
        ("node_failure", "node n2 did not answer", "failed", "KILLED"),
        ("unknown", "it ended with exit code 3 and left no record", "failed", "FAILED"),
        ("unknown", "the supervisor process 12 on n1 is gone", "failed", "KILLED"),
    ],
)
def test_the_status_says_who_ended_a_stage(
    cause: str, detail: str, state: str, status: str, uri: str, tmp_path: Path
) -> None:
    run = TrackedRun(tmp_path / "tracked", uri, ["grounded"])
    run.begin("grounded")
    run.fail("grounded", cause, detail, state)  # type: ignore[arg-type]  # parametrised as plain text
    run.end()

    forward(run.directory, follow=False)

    assert told(uri, run.directory / "grounded").info.status == status
    assert told(uri, run.directory).info.status == status


def test_a_path_that_leads_out_of_its_folder_is_not_sent(uri: str, tmp_path: Path) -> None:
    run = TrackedRun(tmp_path / "tracked", uri, ["grounded"])
    (tmp_path / "private.txt").write_text("private")
    (run.directory / "grounded" / "link.txt").symlink_to(tmp_path / "private.txt")
    lines = [{"event": "file", "path": "../../private.txt"}, {"event": "file", "path": "link.txt"}]
    (run.directory / "grounded" / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.begin("grounded")
    run.finish("grounded")
    run.end()

    forward(run.directory, follow=False)

    run_id = read_ledger(run.directory / "grounded")["mlflow_run_id"]
    assert MlflowClient(tracking_uri=uri).list_artifacts(run_id) == []


def test_a_run_that_mlflow_lost_is_told_again_from_the_start(uri: str, tmp_path: Path) -> None:
    run = TrackedRun(tmp_path / "tracked", uri, ["grounded", "align"])
    run.whole()
    forward(run.directory, follow=False)
    for folder in (run.directory, run.directory / "align"):
        plain = read_ledger(folder)
        unknown = {**plain, "mlflow_run_id": "0" * 32, "key": "f" * 32, "offset": 0, "status": None, "tags": {}}
        (folder / TRACKING).write_text(json.dumps(unknown))

    forward(run.directory, follow=False)

    child = told(uri, run.directory / "align")
    assert child.data.tags["mlflow.parentRunId"] == told(uri, run.directory).info.run_id
    assert len(curve(uri, run.directory / "align")) == 40


def test_tracking_that_is_off_says_so(tmp_path: Path) -> None:
    run = TrackedRun(tmp_path / "tracked", "", ["grounded"])

    delivery = forward(run.directory, follow=False)

    assert (delivery.uri, delivery.complete) == (None, True)


def test_a_folder_that_was_never_launched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="never launched"):
        forward(tmp_path, follow=False)


def test_two_forwarders_do_not_speak_about_one_run(uri: str, tmp_path: Path) -> None:
    run = TrackedRun(tmp_path / "tracked", uri, ["grounded"])  # and it has not ended
    with (run.directory / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("process 12 on n1")
        held.flush()

        with pytest.raises(RunBusy, match="already, by process 12 on n1"):
            forward(run.directory, follow=False)


def test_a_server_that_is_away_is_named_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = TrackedRun(tmp_path / "tracked", "http://ada:sesame@127.0.0.1:9", ["grounded"])
    run.begin("grounded")
    run.finish("grounded")
    run.end()

    with pytest.raises(TrackingAway) as caught:
        forward(run.directory, follow=False)

    assert "127.0.0.1" in str(caught.value)
    assert "sesame" not in str(caught.value) + (run.directory / TRACKING).read_text()


def page_told(uri: str, directory: Path, place: Path) -> str:
    client = MlflowClient(tracking_uri=uri)
    return Path(client.download_artifacts(told(uri, directory).info.run_id, "report.html", str(place))).read_text()


def test_the_report_reaches_mlflow_at_every_end_of_a_stage(uri: str, tmp_path: Path) -> None:
    run = TrackedRun(tmp_path / "pages", uri)
    pages = []
    for name in ("grounded", "align"):
        run.begin(name)
        run.steps(name, 1, 3)
        run.finish(name)
        forward(run.directory, follow=False)
        place = tmp_path / name
        place.mkdir()
        pages.append(page_told(uri, run.directory, place))

    assert "1 of 4 stages are done" in pages[0]
    assert "2 of 4 stages are done" in pages[1]


def test_a_report_that_cannot_be_written_keeps_nothing_from_mlflow(uri: str, tmp_path: Path) -> None:
    run = TrackedRun(tmp_path / "pages", uri)
    (run.directory / "report.html").mkdir()
    run.begin("grounded")
    run.finish("grounded")

    delivery = forward(run.directory, follow=False)

    assert delivery.complete
    assert told(uri, run.directory / "grounded").info.status == "FINISHED"
