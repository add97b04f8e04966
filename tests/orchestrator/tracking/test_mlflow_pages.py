"""What somebody finds who has MLflow only: its pages in a real browser, and what can be searched by."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.journal import Journal
from orchestrator.tracking.forwarder import forward
from orchestrator.tracking.ledger import read_ledger
from slurm.drill.server import TrackingServer
from tests.browser import Browser, Page
from tests.command_line import REPOSITORY
from tests.tracked_run import STAGES, TrackedRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

in_a_browser = pytest.mark.needs("chromium")
PATIENCE_S = 120.0  # a page of MLflow's is put together from many requests, and all is slow on a busy machine
REGISTER = {
    "name": "glamm", "stage": "export", "alias": "champion", "when": {"score": {"gcg": {"miou": ">= 0.5"}}},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(server: TrackingServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Leaves a run of five stages, one of which lost a node at first, with its export registered."""
    run = TrackedRun(tmp_path_factory.mktemp("runs") / "quickstart", server.uri, tuple(STAGES), REGISTER)
    run.begin("align")
    run.steps("align", 1, 20)
    run.alert("align", "throughput_drop", "50 samples/s")
    run.fail("align", "node_failure", "node n2 did not answer")
    journal = Journal(run.directory / "score")
    journal.metrics(40, {"eval/gcg/miou": 0.62})
    journal.close()
    run.whole()
    forward(run.directory, follow=False)
    return run.directory


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.page(width_px=1600, height_px=1200)
    yield page
    page.close()


def told(run: Path, stage: str = "") -> Mapping[str, Any]:
    return read_ledger(run / stage)


def shown(page: Page, address: str, *words: str) -> None:
    """Opens a page of MLflow's and waits until it shows all of these."""
    page.open(address)
    appears(page, *words)


def appears(page: Page, *words: str) -> None:
    page.wait(visible(*words), PATIENCE_S)


def visible(*words: str) -> str:
    """Returns JavaScript that tells whether all of these can be read; laying a page out costs it more than looking."""
    text = "document.body.textContent", "document.body.innerText"
    return f"{json.dumps(words)}.every(word => {' && '.join(f'{one}.includes(word)' for one in text)})"


def experiment(server: TrackingServer, run: Path) -> str:
    return f"{server.uri}/#/experiments/{told(run)['experiment_id']}"


@in_a_browser
def test_the_page_of_all_runs_shows_a_recipe_with_its_stages(server: TrackingServer, run: Path, page: Page) -> None:
    shown(page, f"{experiment(server, run)}/runs", "quickstart")

    # it may draw its table anew while it loads, and forget a click; but a click too many folds the stages away again
    unfold = """(() => {
      if (%s) return true;
      const button = document.querySelector('[data-component-id*="runnamecellrenderer"]');
      if (button && !(Date.now() - window.clicked < 10000)) { window.clicked = Date.now(); button.click(); }
      return false; })()"""
    page.wait(unfold % visible(*STAGES), PATIENCE_S)


@in_a_browser
def test_the_page_of_the_export_names_the_run_that_made_it_and_the_model_it_was_made_from(
    server: TrackingServer, run: Path, page: Page
) -> None:
    export, parent = told(run, "export"), told(run, "gcg")["models"]["model"]["id"]

    shown(page, f"{experiment(server, run)}/models/{export['models']['model']['id']}", "Source run", "gcg.model")

    for place in (f"/runs/{export['mlflow_run_id']}", f"/models/{parent}"):
        page.wait(f"document.querySelector('a[href*=\"{place}\"]')", PATIENCE_S)


@in_a_browser
def test_the_page_of_a_stage_lists_its_data_and_the_model_it_began_with(
    server: TrackingServer, run: Path, page: Page
) -> None:
    stage = told(run, "gcg")

    shown(page, f"{experiment(server, run)}/runs/{stage['mlflow_run_id']}", "grounded.shards", "tracked-align-model")


@in_a_browser
def test_the_page_of_the_registered_model_shows_the_version_and_its_alias(
    server: TrackingServer, run: Path, page: Page
) -> None:
    assert told(run, "export")["registered"]["version"] == "1"

    shown(page, f"{server.uri}/#/models/glamm", "Version 1", "champion")


@in_a_browser
def test_the_page_of_the_version_shows_where_it_is_from_and_the_score_that_was_checked(
    server: TrackingServer, run: Path, page: Page
) -> None:
    made_by = told(run, "export")["mlflow_run_id"]

    shown(page, f"{server.uri}/#/models/glamm/versions/1", "champion", "orch.score.score.gcg.miou", "0.62", str(run))

    page.wait(f"document.querySelector('a[href*=\"/runs/{made_by}\"]')", PATIENCE_S)


@in_a_browser
def test_a_picture_opens(server: TrackingServer, run: Path, page: Page) -> None:
    stage = told(run, "score")["mlflow_run_id"]

    page.open(f"{experiment(server, run)}/runs/{stage}/artifacts/report/pictures/scene.png")

    page.wait("[...document.images].some(image => image.naturalWidth === 8)", PATIENCE_S)


# what the examples of the page find in the run above, which stands for the quickstart
FOUND: dict[str, list[set[str]]] = {
    "runs": [
        {"quickstart"}, {"score"}, {"align"}, {"align"}, {"quickstart"}, {"gcg"}, {"align", "gcg"}, {"score"},
        {"quickstart"}, {"align", "gcg"}, {"export"}, {"quickstart"},
    ],
    "models": [{"tracked-export-model"}, {"tracked-align-model"}],
    "versions": [{"glamm/1"}, {"glamm/1"}],
}  # fmt: skip


def examples() -> dict[str, list[str]]:
    """Reads the searches that the page of this room shows, with the names of the run that is searched here."""
    page = (REPOSITORY / "orchestrator" / "tracking" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sql\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    found: dict[str, list[str]] = {}
    for line in block.splitlines():
        if line.startswith("-- "):
            found[line.removeprefix("-- ")] = []
        else:
            found[list(found)[-1]].append(line.replace("recipe` = 'quickstart'", "recipe` = 'tracked'"))
    return found


def test_every_search_that_the_documents_show_finds_what_it_says(server: TrackingServer, run: Path) -> None:
    client, place = MlflowClient(tracking_uri=server.uri), [told(run)["experiment_id"]]
    searches = examples()

    found = {
        "runs": [{str(one.info.run_name) for one in client.search_runs(place, wanted)} for wanted in searches["runs"]],
        "models": [
            {str(one.name) for one in client.search_logged_models(place, wanted.replace("quickstart", "tracked"))}
            for wanted in searches["models"]
        ],
        "versions": [
            {f"{one.name}/{one.version}" for one in client.search_model_versions(wanted)}
            for wanted in searches["versions"]
        ],
    }

    assert {kind: list(zip(searches[kind], found[kind], strict=True)) for kind in found} == {
        kind: list(zip(searches[kind], FOUND[kind], strict=True)) for kind in found
    }
