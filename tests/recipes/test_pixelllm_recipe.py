"""PixelLLM's tiny recipe: a few steps of every stage in one process; `make test-long` runs all, to the learning bar."""

import json
from pathlib import Path

import pytest
from torch import nn

from orchestrator.artifacts import Checkpoint
from orchestrator.recipe import load_recipe
from orchestrator.training.compiling import find_parts
from stages.blueprints import read_blueprint
from stages.pixelllm.config import FAMILY, Blueprint
from stages.pixelllm.model import PixelLLM
from stages.predict import Asked, predict
from tests.recipes.one_process import run_here
from tests.recipes.recipe_run import RecipeRun

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch"), pytest.mark.timeout(900)]
RECIPE = Path(__file__).parents[2] / "recipes" / "tiny" / "pixelllm.yaml"
TRAININGS = ("captions", "refer_masks", "refer", "trace", "dense", "joint")
CHANGES = ("global_batch=4", "engine.name=torch", "engine.leaf_modules=[]")
FEW = (
    "vars.steps=2", "vars.refer=2", "vars.masks=2", "vars.few=2", "vars.scenes=24",
    *(f"stages.{name}.config.train.{change}" for name in TRAININGS for change in CHANGES),
)  # fmt: skip


def scores(folder: Path, stage: str) -> dict[str, dict[str, dict[str, float]]]:
    path = folder / stage / "report" / "metrics.json"
    found: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    return found


def test_a_few_steps_of_every_stage_are_trained_scored_exported_and_drawn(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    plan = run_here(RECIPE, folder, {}, FEW)

    for stage in plan.stages:
        assert all(output.ready() for output in stage.outputs.values()), stage.name
    for name in TRAININGS:
        lines = (folder / name / "journal.jsonl").read_text(encoding="utf-8").splitlines()
        assert sum(event["event"] == "loss" for event in map(json.loads, lines)) == 2, name
    assert set(scores(folder, "score_trace")) == {"word_locations"}
    assert set(scores(folder, "score")) == {"refer_boxes"}
    assert set(scores(folder, "score_masks")) == {"refer"}
    assert set(scores(folder, "score_dense")) == {"region_captions", "dense_captions"}

    for name, spec in load_recipe(RECIPE).stages.items():  # what ZeRO-3 gathers as one is there, and called
        if leaves := spec.config.get("train", {}).get("engine", {}).get("leaf_modules"):
            model = PixelLLM(read_blueprint(Checkpoint(folder / name / "model"), FAMILY, Blueprint))
            parts = find_parts(model, leaves, key=name)
            assert all(type(part).forward is not nn.Module.forward for part in parts), name

    image, export = next((folder / "shapes" / "raw").rglob("*.jpg")), folder / "export" / "model"
    said = predict(export, image, output=tmp_path / "words.png")
    asked = predict(export, image, Asked(refer=("the ring",)), output=tmp_path / "box.png")
    assert said["words"][0].keys() >= {"caption", "words"}
    assert len(asked["referred"]) == 1
    for name in ("words.png", "box.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_all_steps_learn_where_words_are(tmp_path: Path) -> None:
    run = RecipeRun(tmp_path, "tiny/pixelllm.yaml")
    run.launch("all")

    folder = tmp_path / "runs" / "all"
    log = (folder / "trace" / "logs" / "attempt_1" / "rank_0.log").read_text(encoding="utf-8")
    assert "parameters partitioned over 2 ranks" in log
    words = scores(folder, "score_trace")["word_locations"]
    boxes, masks = scores(folder, "score")["refer_boxes"], scores(folder, "score_masks")["refer"]
    assert 3 * words["scores"]["word_error"] <= words["untrained"]["word_error"]
    assert 1.3 * words["scores"]["middle_error"] <= words["untrained"]["middle_error"]  # untrained: always the middle
    assert boxes["scores"]["precision50"] >= max(0.3, 3 * boxes["untrained"]["precision50"])
    assert masks["scores"]["giou"] >= max(0.4, 3 * masks["untrained"]["giou"])
