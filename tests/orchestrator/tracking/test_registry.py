"""MLflow's model registry: what passes becomes one version, what does not becomes none, and nothing waits for it."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from orchestrator.errors import TrackingAway
from orchestrator.registration import Registration
from orchestrator.run import Run
from orchestrator.tracking.forwarder import forward
from orchestrator.tracking.ledger import TRACKING, read_ledger
from orchestrator.typed import plain
from slurm.drill.server import TrackingServer
from tests.tracked_run import FACTS, TrackedRun
from tests.unreliable import Door

NAMES = ("score", "export")
TRIES = 100


def wish(name: str, condition: str = ">= 0.5", **more: Any) -> dict[str, Any]:
    """Returns what a launch notes of `tracking.register`."""
    wished = Registration(name=name, stage="export", when={"score": {"gcg": {"miou": condition}}}, **more)
    noted: dict[str, Any] = plain(wished)
    return noted


def finished(directory: Path, uri: str, register: dict[str, Any], content: str = "") -> Path:
    """Leaves a run that has evaluated and exported a model, and tells MLflow."""
    run = TrackedRun(directory, uri, NAMES, register)
    run.content = content
    if not uri.startswith("http"):  # files of an experiment that a server made are reached through a server only
        run.experiment = "without a server"
        run.launch(uri)
    run.whole()
    forward(directory, follow=False)
    return directory


def versions(server: TrackingServer, name: str) -> list[ModelVersion]:
    return list(MlflowClient(tracking_uri=server.uri).search_model_versions(f"name = '{name}'"))


def tags(server: TrackingServer, directory: Path) -> dict[str, str]:
    client = MlflowClient(tracking_uri=server.uri)
    return dict(client.get_run(read_ledger(directory)["mlflow_run_id"]).data.tags)


def test_an_export_that_passes_is_a_version_with_its_origin_its_scores_and_the_alias(
    server: TrackingServer, tmp_path: Path
) -> None:
    run = finished(tmp_path / "passes", server.uri, wish("passes"))

    (version,) = versions(server, "passes")
    registered = MlflowClient(tracking_uri=server.uri).get_registered_model("passes")
    ledger = read_ledger(run / "export")
    expected = {
        "orch.recipe": "tracked", "orch.run": str(run), "orch.name": "export", "orch.stage": "export",
        "orch.fingerprint": "export-fingerprint", "orch.commit": "c0ffee", "orch.dirty": "true",
        "orch.path": str(run / "export" / "model"), "orch.score.score.gcg.miou": "0.62", "orch.alias": "champion",
        "orch.checked": "score.gcg.miou is 0.62 (>= 0.5)", "orch.digest": ledger["models"]["model"]["digest"],
    }  # fmt: skip
    assert version.tags == expected
    assert (version.run_id, registered.aliases) == (ledger["mlflow_run_id"], {"champion": version.version})
    assert [tags(server, folder)["orch.registered"] for folder in (run, run / "export")] == ["passes/1"] * 2
    model = MlflowClient(tracking_uri=server.uri).get_logged_model(ledger["models"]["model"]["id"])
    assert [one["name"] for one in json.loads(model.tags["mlflow.modelVersions"])] == ["passes"]


def test_telling_again_and_forgetting_everything_make_no_second_version(server: TrackingServer, tmp_path: Path) -> None:
    run = finished(tmp_path / "again", server.uri, wish("again"))
    said = forward(run, follow=False).message
    for folder in (run, *(run / name for name in NAMES)):  # as if killed before any of it could be noted
        kept = {name: value for name, value in read_ledger(folder).items() if name in {"uri", "key"}}
        (folder / TRACKING).write_text(json.dumps(kept), encoding="utf-8")

    forward(run, follow=False)

    assert [version.version for version in versions(server, "again")] == ["1"]
    assert said.endswith("its export is registered as again/1")
    assert tags(server, run)["orch.registered"] == "again/1"


def test_an_export_that_is_used_again_elsewhere_is_the_version_that_it_was(
    server: TrackingServer, tmp_path: Path
) -> None:
    first = finished(tmp_path / "first", server.uri, wish("shared"))
    second = finished(tmp_path / "second", server.uri, wish("shared"))

    (version,) = versions(server, "shared")
    assert version.tags["orch.run"] == str(first)
    assert tags(server, second)["orch.registered"] == "shared/1"


def test_the_alias_goes_on_to_what_is_newer_and_never_back(server: TrackingServer, tmp_path: Path) -> None:
    address = f"sqlite:///{server.database}"  # directly, without a server
    client = MlflowClient(tracking_uri=server.uri)
    first = finished(tmp_path / "first", address, wish("aliased"), "one")
    finished(tmp_path / "second", address, wish("aliased"), "two")
    newer = client.get_registered_model("aliased").aliases
    client.set_registered_model_alias("aliased", "champion", "1")  # somebody takes the second one back
    (tmp_path / "second" / "export" / TRACKING).unlink()
    (first / "export" / TRACKING).unlink()

    forward(tmp_path / "second", follow=False)
    forward(first, follow=False)

    assert newer == {"champion": "2"}
    assert client.get_registered_model("aliased").aliases == {"champion": "1"}
    assert len(versions(server, "aliased")) == 2


def test_an_export_that_misses_a_threshold_is_none_until_less_is_asked_of_it(
    server: TrackingServer, tmp_path: Path
) -> None:
    run = finished(tmp_path / "misses", server.uri, wish("misses", ">= 0.7"))
    before, told = versions(server, "misses"), tags(server, run / "export")
    launch = json.loads((run / "launch.json").read_text(encoding="utf-8"))
    launch["tracking"]["register"] = wish("misses", ">= 0.6")
    (run / "launch.json").write_text(json.dumps(launch), encoding="utf-8")

    said = forward(run, follow=False).message

    assert before == []
    assert told["orch.registered"] == "no"
    assert told["orch.registered.why"] == "score.gcg.miou is 0.62, wanted >= 0.7"
    assert said.endswith("registered as misses/1")
    assert len(versions(server, "misses")) == 1


@pytest.mark.parametrize(
    ("facts", "condition", "why"),
    [
        ({"scores": {"gcg": {"miou": 0.62}}, "passed": False}, ">= 0.5", "missed what its own config wishes for"),
        ({"scores": {"gcg": {"cider": 1.5}}, "passed": True}, ">= 0.5", "score.gcg.miou was not measured"),
        ({"scores": {"gcg": {"miou": float("nan")}}, "passed": True}, "<= 0.5", "score.gcg.miou is nan"),
    ],
)
def test_a_score_that_is_not_there_or_not_enough_registers_nothing(
    facts: dict[str, Any], condition: str, why: str, server: TrackingServer, tmp_path: Path
) -> None:
    run = TrackedRun(tmp_path / "run", server.uri, NAMES, wish("poor", condition))
    run.facts = {**FACTS, "report": facts}
    run.whole()

    message = forward(run.directory, follow=False).message

    assert why in message
    assert versions(server, "poor") == []


def test_it_waits_for_an_evaluation_and_says_so_if_that_never_ends(server: TrackingServer, tmp_path: Path) -> None:
    run = TrackedRun(tmp_path / "waits", server.uri, NAMES, wish("waits"))
    with Run(run.directory).lock("test"):  # somebody works on it
        for name in NAMES:
            run.begin(name)
        run.finish("export")
        forward(run.directory, follow=False)
    waiting = tags(server, run.directory / "export")
    run.fail("score", "code_error", "ValueError: no")
    run.end()

    message = forward(run.directory, follow=False).message

    assert "orch.registered" not in waiting
    assert message.endswith("not registered as waits: there are no scores: score is failed")
    assert versions(server, "waits") == []


def test_without_thresholds_what_is_exported_is_registered(server: TrackingServer, tmp_path: Path) -> None:
    register = plain(Registration(name="plain", stage="export", alias=None))

    finished(tmp_path / "plain", server.uri, register)

    (version,) = versions(server, "plain")
    assert MlflowClient(tracking_uri=server.uri).get_registered_model("plain").aliases == {}
    assert "orch.alias" not in version.tags


def test_answers_that_are_lost_on_the_way_make_no_second_version(
    server: TrackingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.tracking.forwarder.LOOK_EVERY_S", 0.0)
    failures = 0
    with Door(server.uri) as door:
        run = TrackedRun(tmp_path / "lost", door.uri, NAMES)
        run.whole()
        forward(run.directory, follow=False)  # all but the registration
        run.register = wish("lost")
        run.launch(door.uri)
        run.end()
        door.mood = "forgetful"
        while read_ledger(run.directory).get("tags", {}).get("orch.registered") != "lost/1":
            try:
                forward(run.directory, follow=False)
            except TrackingAway:
                failures += 1
            assert failures < TRIES

    assert failures > 1
    assert [version.version for version in versions(server, "lost")] == ["1"]


def test_a_registry_that_lets_nobody_in_keeps_nothing_else_from_mlflow(server: TrackingServer, tmp_path: Path) -> None:
    with Door(server.uri) as door:
        run = TrackedRun(tmp_path / "no entry", door.uri, NAMES, wish("no entry"))
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
    assert len(versions(server, "no entry")) == 1
