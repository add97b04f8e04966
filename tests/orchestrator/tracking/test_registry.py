"""MLflow's model registry: what passes becomes one version, what does not becomes none, and nothing waits for it."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from orchestrator.display import ending_lines
from orchestrator.registration import Registration
from orchestrator.report import make_report
from orchestrator.run import Run
from orchestrator.status import read_status
from orchestrator.tracking.forwarder import forward
from orchestrator.tracking.ledger import TRACKING, read_ledger
from orchestrator.typed import plain
from tests.tracked_run import FACTS, TrackedRun

NAMES = ("score", "export")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Names one database for all tests of this file: its tables take seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def wish(name: str, condition: str = ">= 0.5", **more: Any) -> dict[str, Any]:
    """Returns what a launch notes of `tracking.register`."""
    wished = Registration(name=name, stage="export", when={"score": {"gcg": {"miou": condition}}}, **more)
    noted: dict[str, Any] = plain(wished)
    return noted


def finished(directory: Path, uri: str, register: dict[str, Any], content: str = "") -> Path:
    """Leaves a run that has evaluated and exported a model, and tells MLflow."""
    run = TrackedRun(directory, uri, NAMES, register)
    run.content = content
    run.whole()
    forward(directory, follow=False)
    return directory


def versions(uri: str, name: str) -> list[ModelVersion]:
    return list(MlflowClient(tracking_uri=uri).search_model_versions(f"name = '{name}'"))


def champion(uri: str, name: str) -> str:
    return str(MlflowClient(tracking_uri=uri).get_registered_model(name).aliases["champion"])


def tags(uri: str, directory: Path) -> dict[str, str]:
    client = MlflowClient(tracking_uri=uri)
    return dict(client.get_run(read_ledger(directory)["mlflow_run_id"]).data.tags)


def test_an_export_that_passes_is_a_version_with_its_origin_its_scores_and_the_alias(uri: str, tmp_path: Path) -> None:
    run = finished(tmp_path / "passes", uri, wish("passes"))

    (version,) = versions(uri, "passes")
    assert "registry: registered as passes/1 (score.gcg.miou is 0.62 (>= 0.5))" in ending_lines(read_status(run))
    registered = MlflowClient(tracking_uri=uri).get_registered_model("passes")
    ledger = read_ledger(run / "export")
    expected = {
        "orch.recipe": "tracked", "orch.run": str(run), "orch.name": "export", "orch.stage": "export",
        "orch.fingerprint": "export-fingerprint", "orch.commit": "c0ffee", "orch.dirty": "true",
        "orch.path": str(run / "export" / "model"), "orch.score.score.gcg.miou": "0.62", "orch.alias": "champion",
        "orch.checked": "score.gcg.miou is 0.62 (>= 0.5)", "orch.digest": ledger["models"]["model"]["digest"],
    }  # fmt: skip
    assert version.tags == expected
    assert (version.run_id, registered.aliases) == (ledger["mlflow_run_id"], {"champion": version.version})
    assert [tags(uri, folder)["orch.registered"] for folder in (run, run / "export")] == ["passes/1"] * 2
    model = MlflowClient(tracking_uri=uri).get_logged_model(ledger["models"]["model"]["id"])
    assert [one["name"] for one in json.loads(model.tags["mlflow.modelVersions"])] == ["passes"]


def test_telling_again_and_forgetting_everything_make_no_second_version(uri: str, tmp_path: Path) -> None:
    run = finished(tmp_path / "again", uri, wish("again"))
    said = forward(run, follow=False).message
    for folder in (run, *(run / name for name in NAMES)):  # as if killed before any of it could be noted
        kept = {name: value for name, value in read_ledger(folder).items() if name in {"uri", "key"}}
        (folder / TRACKING).write_text(json.dumps(kept), encoding="utf-8")

    forward(run, follow=False)

    assert [str(version.version) for version in versions(uri, "again")] == ["1"]
    assert said.endswith("its export is registered as again/1")
    assert tags(uri, run)["orch.registered"] == "again/1"


def test_an_export_that_is_used_again_elsewhere_is_the_version_that_it_was(uri: str, tmp_path: Path) -> None:
    first = finished(tmp_path / "first", uri, wish("shared"))
    second = finished(tmp_path / "second", uri, wish("shared"))

    (version,) = versions(uri, "shared")
    assert version.tags["orch.run"] == str(first)
    assert tags(uri, second)["orch.registered"] == "shared/1"


def test_the_alias_goes_on_to_what_is_newer_and_never_back(uri: str, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=uri)
    first = finished(tmp_path / "first", uri, wish("aliased"), "one")
    finished(tmp_path / "second", uri, wish("aliased"), "two")
    newer = champion(uri, "aliased")
    client.set_registered_model_alias("aliased", "champion", "1")  # somebody takes the second one back
    (tmp_path / "second" / "export" / TRACKING).unlink()
    (first / "export" / TRACKING).unlink()

    forward(tmp_path / "second", follow=False)
    forward(first, follow=False)

    assert newer == "2"
    assert champion(uri, "aliased") == "1"
    assert len(versions(uri, "aliased")) == 2


def test_an_export_that_misses_a_threshold_is_none_until_less_is_asked_of_it(uri: str, tmp_path: Path) -> None:
    run = finished(tmp_path / "misses", uri, wish("misses", ">= 0.7"))
    before, told, shown = versions(uri, "misses"), tags(uri, run / "export"), read_status(run)
    launch = json.loads((run / "launch.json").read_text(encoding="utf-8"))
    launch["tracking"]["register"] = wish("misses", ">= 0.6")
    (run / "launch.json").write_text(json.dumps(launch), encoding="utf-8")

    said = forward(run, follow=False).message

    assert before == []
    assert shown["registered"] == {"version": None, "why": "score.gcg.miou is 0.62, wanted >= 0.7"}
    assert told["orch.registered"] == "no"
    assert told["orch.registered.why"] == "score.gcg.miou is 0.62, wanted >= 0.7"
    assert said.endswith("registered as misses/1")
    assert "registered as misses/1 (score.gcg.miou is 0.62 (&gt;= 0.6))" in make_report(run).read_text(encoding="utf-8")
    assert len(versions(uri, "misses")) == 1


@pytest.mark.parametrize(
    ("facts", "condition", "why"),
    [
        ({"scores": {"gcg": {"miou": 0.62}}, "passed": False}, ">= 0.5", "missed what its own config wishes for"),
        ({"scores": {"gcg": {"cider": 1.5}}, "passed": True}, ">= 0.5", "score.gcg.miou was not measured"),
        ({"scores": {"gcg": {"miou": float("nan")}}, "passed": True}, "<= 0.5", "score.gcg.miou is nan"),
    ],
)
def test_a_score_that_is_not_there_or_not_enough_registers_nothing(
    facts: dict[str, Any], condition: str, why: str, uri: str, tmp_path: Path
) -> None:
    run = TrackedRun(tmp_path / "run", uri, NAMES, wish("poor", condition))
    run.facts = {**FACTS, "report": facts}
    run.whole()

    message = forward(run.directory, follow=False).message

    assert why in message
    assert versions(uri, "poor") == []


def test_it_waits_for_an_evaluation_and_says_so_if_that_never_ends(uri: str, tmp_path: Path) -> None:
    run = TrackedRun(tmp_path / "waits", uri, NAMES, wish("waits"))
    with Run(run.directory).lock("test"):  # somebody works on it
        for name in NAMES:
            run.begin(name)
        run.finish("export")
        forward(run.directory, follow=False)
    waiting = tags(uri, run.directory / "export")
    run.fail("score", "code_error", "ValueError: no")
    run.end()

    message = forward(run.directory, follow=False).message

    assert "orch.registered" not in waiting
    assert message.endswith("not registered as waits: there are no scores: score is failed")
    assert versions(uri, "waits") == []


def test_without_thresholds_what_is_exported_is_registered(uri: str, tmp_path: Path) -> None:
    register = plain(Registration(name="plain", stage="export", alias=None))

    finished(tmp_path / "plain", uri, register)

    (version,) = versions(uri, "plain")
    assert MlflowClient(tracking_uri=uri).get_registered_model("plain").aliases == {}
    assert "orch.alias" not in version.tags
