"""The tiny twins of the full-size recipes run to their end: every stage trains, scores and exports."""

import json
import math
from pathlib import Path

import pytest

from tests.recipes.one_process import run_here

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]
TINY = Path(__file__).parents[2] / "recipes" / "tiny"
LAUNCHED = {"cloc", "cloc_to_glamm", "glamm", "pixclip", "pix2cap", "pixelllm"}  # on two ranks, by tests of their own
TWINS = sorted(path.stem for path in TINY.glob("*.yaml") if path.stem not in LAUNCHED)


@pytest.fixture(scope="module")
def made() -> dict[str, Path]:
    """Remembers what one twin has made and the next one needs: pictures and shards."""
    return {}


@pytest.mark.parametrize("twin", TWINS)
def test_a_tiny_twin_runs_to_its_end(
    twin: str, tmp_path_factory: pytest.TempPathFactory, made: dict[str, Path]
) -> None:
    folder = tmp_path_factory.mktemp(twin) / "run"

    plan = run_here(TINY / f"{twin}.yaml", folder, made)

    for stage in plan.stages:
        assert all(output.ready() for output in stage.outputs.values()), stage.name
        if stage.steps is not None:
            lines = (folder / stage.name / "journal.jsonl").read_text(encoding="utf-8").splitlines()
            losses = [event["value"] for event in map(json.loads, lines) if event["event"] == "loss"]
            assert len(losses) == stage.steps, stage.name
            assert all(map(math.isfinite, losses)), stage.name
