"""The whole chain, tiny: trains under ZeRO-3 on two ranks, is reused, changed, killed and resumed."""

import json
import os
import signal
import sqlite3
from pathlib import Path

import pytest
import yaml

from tests.recipes.recipe_run import REPOSITORY, RecipeRun, workers

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> RecipeRun:
    """Runs the tiny chain to its end, once for all tests of this file."""
    chain = RecipeRun(tmp_path_factory.mktemp("chain"), "tiny/glamm.yaml")
    chain.launch("whole")
    return chain


def test_every_stage_is_done_and_the_report_stands_alone(chain: RecipeRun) -> None:
    assert {stage["state"] for stage in chain.status("whole").values()} == {"done"}

    page = (chain.folder / "runs" / "whole" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "data:image/png;base64," in page
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_parameters_are_really_partitioned_over_both_ranks(chain: RecipeRun) -> None:
    log = (chain.folder / "runs" / "whole" / "gcg" / "logs" / "attempt_1" / "rank_0.log").read_text(encoding="utf-8")

    assert "parameters partitioned over 2 ranks" in log


def test_mlflow_knows_the_parent_and_every_stage(chain: RecipeRun) -> None:
    chain.orch("sync", "whole")

    with sqlite3.connect(chain.folder / "mlflow.db") as store:
        rows = store.execute("select name, status from runs").fetchall()
        points = store.execute("select count(*) from metrics where key = 'loss_every_step'").fetchone()[0]
    stages = set(chain.status("whole"))
    assert stages <= {name for name, _ in rows}
    assert len(rows) == len(stages) + 1
    assert {status for _, status in rows} == {"FINISHED"}
    assert points == sum(len(chain.losses("whole", name)) for name in ("words", "align", "region", "gcg", "sft"))


def test_the_export_is_a_version_in_the_registry_with_the_score_that_was_asked_for(chain: RecipeRun) -> None:
    said = chain.orch("sync", "whole")

    with sqlite3.connect(chain.folder / "mlflow.db") as store:
        tags = dict(store.execute("select key, value from model_version_tags where version = 1"))
    assert said.strip().endswith("its export is registered as tiny_glamm/1")
    assert tags["orch.path"] == str(chain.folder / "runs" / "whole" / "export" / "model")
    assert "orch.score.score.gcg.miou" in tags


def test_the_export_answers_about_an_image(chain: RecipeRun) -> None:
    image = next((chain.folder / "runs" / "whole" / "shapes" / "raw").rglob("*.jpg"))

    answer = json.loads(
        chain.orch("predict", "runs/whole/export/model", str(image), "--output", "answer.png", "--json")
    )

    assert "caption" in answer
    assert (chain.folder / "answer.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_launch_reuses_everything(chain: RecipeRun) -> None:
    chain.launch("whole")

    assert {stage["action"] for stage in chain.plan("whole").values()} == {"reuse"}
    assert all(len(stage["attempts"]) == 1 for stage in chain.status("whole").values())


def test_a_changed_key_of_gcg_reruns_gcg_and_what_follows(chain: RecipeRun) -> None:
    plan = chain.plan("whole", "stages.gcg.config.bce_weight=3.0")

    again = {name for name, stage in plan.items() if stage["action"] != "reuse"}
    assert again == {"gcg", "sft", "score", "export"}
    change = plan["gcg"]["changes"][0]
    assert (change["key"], change["was"], change["is"]) == ("config.bce_weight", "2.0", "3.0")


def test_killed_workers_lose_nothing_and_resume_with_the_same_losses(chain: RecipeRun) -> None:
    killed = RecipeRun(chain.folder, str(region_alone(chain.folder, "whole")))
    killed.launch("killed", "retry.attempts=1", "--detach")
    region = chain.folder / "runs" / "killed" / "region"
    chain.wait((region / "checkpoints" / "step_00000004" / "manifest.json").is_file, seconds=300)
    for pid in workers(chain.folder / "runs" / "killed", "region"):
        os.kill(pid, signal.SIGKILL)
    chain.wait(lambda: chain.status("killed")["region"]["state"] == "failed", seconds=60)

    assert killed.plan("killed")["region"]["action"] == "resume"
    chain.orch("resume", "killed")

    assert chain.losses("killed", "region") == chain.losses("whole", "region")
    first, second = chain.status("killed")["region"]["attempts"]
    assert (first["state"], second["state"]) == ("failed", "done")
    assert "9" in first["detail"] or "SIGKILL" in first["detail"]
    assert second["from_step"] >= 4


def region_alone(folder: Path, made: str) -> Path:
    """Writes the recipe of one stage, which begins from what another run has made."""
    recipe = yaml.safe_load((REPOSITORY / "recipes" / "tiny" / "glamm.yaml").read_text(encoding="utf-8"))
    runs = folder / "runs" / made
    inputs = {"model": f"{runs}/align/model", "shards": {"regions": f"{runs}/regions/shards"}}
    recipe["stages"] = {"region": {**recipe["stages"]["region"], "inputs": inputs}}
    del recipe["tracking"]["register"]
    path = folder / "region.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
