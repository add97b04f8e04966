"""Pix2Cap's tiny chain on two ZeRO ranks: a few steps always, to its learning bar among the long tests."""

import json
from pathlib import Path

import pytest

from tests.recipes.recipe_run import RecipeRun

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch"), pytest.mark.timeout(900)]
SHORT = ("vars.steps=2", "vars.scenes=16", "vars.held_out=2")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> RecipeRun:
    """Runs the chain to its end, once for all tests of this file."""
    chain = RecipeRun(tmp_path_factory.mktemp("pix2cap"), "tiny/pix2cap.yaml", *SHORT)
    chain.launch("short")
    return chain


def test_every_stage_is_done_on_two_ranks(chain: RecipeRun) -> None:
    assert {stage["state"] for stage in chain.status("short").values()} == {"done"}

    log = (chain.folder / "runs/short/train/logs/attempt_1/rank_0.log").read_text(encoding="utf-8")
    assert "parameters partitioned over 2 ranks" in log
    assert len(chain.losses("short", "train")) == 2


def test_the_export_draws_the_segments_of_a_picture(chain: RecipeRun) -> None:
    image = next((chain.folder / "runs/short/shapes/raw/coco").rglob("*.jpg"))

    answer = json.loads(
        chain.orch("predict", "runs/short/export/model", str(image), "--output", "segments.png", "--json")
    )

    assert all({"category", "category_id", "caption", "score", "mask"} <= set(one) for one in answer["segments"])
    assert (chain.folder / "segments.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_it_learns_segments_and_captions(tmp_path: Path) -> None:
    chain = RecipeRun(tmp_path, "tiny/pix2cap.yaml")
    chain.launch("whole")

    metrics = json.loads((tmp_path / "runs/whole/score/report/metrics.json").read_text(encoding="utf-8"))
    found = metrics["benchmarks"]["panoptic"]
    assert [check for check in metrics["checks"] if not check["passed"]] == []
    for score in ("pq", "exact", "cider"):
        assert found["scores"][score] > 3 * found["untrained"][score]
