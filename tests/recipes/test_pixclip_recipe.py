"""PixCLIP's tiny recipe on two ranks: a few steps of it, and with `make test-long` all, to what it must have learnt."""

import json
from pathlib import Path

import pytest

from tests.recipes.recipe_run import RecipeRun

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch"), pytest.mark.timeout(900)]
FEW = ("vars.steps=2", "vars.scenes=24", "vars.held_out=4", "stages.contrast.config.train.global_batch=8")


def scores(run: RecipeRun, name: str) -> dict[str, dict[str, dict[str, float]]]:
    path = run.folder / "runs" / name / "score" / "report" / "metrics.json"
    found: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    return found


def test_a_few_steps_train_on_two_ranks_and_are_scored_exported_and_asked(tmp_path: Path) -> None:
    run = RecipeRun(tmp_path, "tiny/pixclip.yaml", *FEW)
    run.launch("few")

    assert {stage["state"] for stage in run.status("few").values()} == {"done"}
    log = (tmp_path / "runs" / "few" / "contrast" / "logs" / "attempt_1" / "rank_0.log").read_text(encoding="utf-8")
    assert "parameters partitioned over 2 ranks" in log
    assert sorted(run.losses("few", "contrast")) == [1, 2]
    assert set(scores(run, "few")) >= {"masked_retrieval", "refer_proposals"}
    report = tmp_path / "runs" / "few" / "score" / "report"
    drawn = json.loads((report / "metrics.json").read_text(encoding="utf-8"))["pictures"]
    grids = {picture["key"] for picture in drawn if "title" in picture and (report / picture["path"]).is_file()}
    assert grids == {"text_to_region", "region_to_text"}
    image = next((tmp_path / "runs" / "few" / "shapes" / "raw").rglob("*.jpg"))
    (tmp_path / "mask.json").write_text('{"size": [64, 64], "counts": [2000, 300, 1796]}')
    texts = ("--text", "a red ring", "--text", "a blue bar", "--box", "5,5,30,30", "--mask", "mask.json")
    answer = json.loads(
        run.orch("predict", "runs/few/export/model", str(image), *texts, "--output", "drawn.png", "--json")
    )
    boxed, masked = answer["ranked"]
    assert {one["text"] for one in boxed["texts"]} == {one["text"] for one in masked["texts"]}
    assert masked["share_of_image"] == 300 / 64**2
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
@pytest.mark.timeout(2400)  # minutes on quiet cores; others may be at work
def test_all_steps_learn_what_a_mask_shows(tmp_path: Path) -> None:
    run = RecipeRun(tmp_path, "tiny/pixclip.yaml")
    run.launch("all")

    found = scores(run, "all")["masked_retrieval"]
    for score in ("region_to_text10", "text_to_region10"):
        assert found["scores"][score] >= 3 * found["untrained"][score], score
