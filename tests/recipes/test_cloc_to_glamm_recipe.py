"""A tiny CLOC becomes eyes and Prompter of a tiny GLaMM, launched on two ZeRO ranks."""

import json
from pathlib import Path

import pytest

from tests.recipes.recipe_run import RecipeRun

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch"), pytest.mark.timeout(900)]

FEW = ("pretrain", "align", "region", "gcg")
SHORT = (
    "stages.shapes.config.train_scenes=16", "stages.shapes.config.val_scenes=2",
    *(f"stages.{name}.config.train.{key}" for name in FEW for key in ("steps=2", "global_batch=4")),
    "stages.pretrain.config.train.engine.zero_stage=3", "stages.score.config.max_new_tokens=4",
)  # fmt: skip


def test_a_cloc_becomes_a_glamm_that_describes_regions(tmp_path: Path) -> None:
    run = RecipeRun(tmp_path, "tiny/cloc_to_glamm.yaml", *SHORT)

    run.launch("short")

    made = tmp_path / "runs" / "short"
    assert {stage["state"] for stage in run.status("short").values()} == {"done"}
    for name in FEW:
        log = (made / name / "logs" / "attempt_1" / "rank_0.log").read_text(encoding="utf-8")
        assert "parameters partitioned over 2 ranks" in log, name
    facts = json.loads((made / "align" / "model" / "manifest.json").read_text(encoding="utf-8"))["facts"]
    assert list(facts["published"]["sources"].values()) == ["CLOC (orch)"]
    image = next((made / "shapes" / "raw").rglob("*.jpg"))
    said = json.loads(
        run.orch(
            "predict", "runs/short/export/model", str(image), "--box", "4,4,40,40", "--output", "box.png", "--json"
        )
    )
    assert len(said["regions"]) == 1
    assert (tmp_path / "box.png").stat().st_size > 1000
