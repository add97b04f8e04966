"""The tiny CLOC, launched: under ZeRO-3 on two ranks, a few steps; and all of them, to its learning bar."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.recipe_run import RecipeRun

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch"), pytest.mark.timeout(900)]

SHORT = (
    "stages.shapes.config.train_scenes=16", "stages.shapes.config.val_scenes=4",
    "stages.pretrain.config.train.steps=3", "stages.pretrain.config.train.global_batch=8",
    "stages.pretrain.config.train.save.every_steps=2", "stages.pretrain.config.chunk=2",
    "stages.pretrain.config.train.engine.zero_stage=3",
)  # fmt: skip


def metrics(run: RecipeRun, name: str, stage: str) -> dict[str, Any]:
    """Reads the scores of a run."""
    path = run.folder / "runs" / name / stage / "report" / "metrics.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_the_tiny_recipe_trains_on_two_ranks_scores_and_exports(tmp_path: Path) -> None:
    run = RecipeRun(tmp_path, "tiny/cloc.yaml", *SHORT)

    run.launch("short")

    assert {stage["state"] for stage in run.status("short").values()} == {"done"}
    assert len(run.losses("short", "pretrain")) == 3
    log = (tmp_path / "runs" / "short" / "pretrain" / "logs" / "attempt_1" / "rank_0.log").read_text(encoding="utf-8")
    assert "parameters partitioned over 2 ranks" in log
    scored = metrics(run, "short", "score")["benchmarks"] | metrics(run, "short", "locate")["benchmarks"]
    assert set(scored) == {"region_retrieval", "region_recognition", "image_retrieval", "refer_boxes"}
    image = next((tmp_path / "runs" / "short" / "shapes" / "raw").rglob("*.jpg"))
    export = str(tmp_path / "runs" / "short" / "export" / "model")
    run.orch("predict", export, str(image), "--text", "a red ring", "--text", "a blue bar", "--output", "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 1000


@pytest.mark.long
@pytest.mark.timeout(2400)  # minutes on quiet cores; others may be at work
def test_the_tiny_recipe_learns_to_retrieve_regions(tmp_path: Path) -> None:
    run = RecipeRun(tmp_path, "tiny/cloc.yaml")

    run.launch("whole")

    checks = metrics(run, "whole", "score")["checks"] + metrics(run, "whole", "locate")["checks"]
    assert len(checks) == 3
    assert [check for check in checks if not check["passed"]] == []
