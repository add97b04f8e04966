"""Two runs in one page: what was set differently, how both went, and which score is better."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts import Report, write_json
from orchestrator.report import make_report
from tests.orchestrator.report.runs import fingerprint_of


@pytest.fixture
def pair(copied: Callable[[str], Path]) -> tuple[Path, Path]:
    """Writes two runs that differ in a learning rate, a seed, the code, a score, and in how many stages they have."""
    ours, theirs = copied("ours"), copied("theirs")
    recipe = "name: bars\nvars: {side: 64}\nstages:\n  gcg: {resources: {nodes: 2}}\n"
    (ours / "recipe.yaml").write_text(recipe)
    (theirs / "recipe.yaml").write_text(recipe.replace("nodes: 2", "nodes: 8"))
    for run, lr, digest in ((ours, 3e-4, "a" * 64), (theirs, 1e-4, "b" * 64)):
        document = json.loads((run / "gcg/stage.json").read_text())
        config = {"train": {"optim": {"lr": lr, "betas": [0.9, 0.95]}, "api_token": f"hidden{lr}"}}
        identity = {"config": config, "code": {"stages.glamm.decoder": digest}, "inputs": {"model": digest}}
        write_json(run / "gcg/stage.json", {**document, "config": config, "identity": identity})
    metrics = json.loads((theirs / "score/report/metrics.json").read_text())
    metrics["benchmarks"]["gcg"]["scores"] |= {"miou": 0.9, "ap50": 0.0}
    write_json(theirs / "score/report/metrics.json", metrics)
    Report(theirs / "score/report").commit(fingerprint_of("score"))
    return ours, theirs


def rows(text: str) -> dict[str, list[str]]:
    """Returns the rows of the comparison's tables by their first cell, without markup."""
    part = text[text.index('id="comparison"') : text.index('id="lineage"')]
    found = {}
    for row in re.findall(r"<tr>(.*?)</tr>", part):
        cells = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td.*?</td>", row)]
        if cells:
            found[cells[0]] = cells[1:]
    return found


def test_settings_are_compared_key_by_key(pair: tuple[Path, Path], tmp_path: Path) -> None:
    text = make_report(pair[0], tmp_path / "page.html", against=pair[1]).read_text()

    found = rows(text)
    assert found["stages.gcg.config.train.optim.lr"] == ["0.0003", "0.0001"]
    assert found["stages.gcg.resources.nodes"] == ["2", "8"]
    assert found["code: stages.glamm.decoder"] == ["aaaaaaaaaaaa", "bbbbbbbbbbbb"]
    assert found["stages.gcg input model"] == ["aaaaaaaaaaaa", "bbbbbbbbbbbb"]
    assert found["stages.gcg.config.train.api_token"] == ["(hidden)", "(hidden)"]
    assert "hidden0.0003" not in text
    assert not [key for key in found if "betas" in key or "side" in key]


def test_scores_stand_side_by_side_with_the_better_one_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    text = make_report(pair[0], tmp_path / "page.html", against=pair[1]).read_text()

    found = rows(text)
    ours = json.loads((pair[0] / "score/report/metrics.json").read_text())["benchmarks"]["gcg"]["scores"]
    assert found["score · gcg · miou"] == [
        f"{ours['miou']:.3f}", "0.900", f"{ours['miou'] - 0.9:+.3f}", "▼ theirs",
    ]  # fmt: skip
    assert found["score · gcg · ap50"][3] == "▲ ours"
    assert found["score · gcg · meteor"][3] == "equal"


def test_losses_lie_over_each_other(pair: tuple[Path, Path], tmp_path: Path) -> None:
    text = make_report(pair[0], tmp_path / "page.html", against=pair[1]).read_text()

    part = text[text.index('id="comparison"') : text.index('id="lineage"')]
    assert part.count('class="chart"') == 4
    assert 'aria-label="Loss of gcg in both runs: ours, each step from' in part
    assert "theirs, smoothed from" in part


def test_a_run_against_itself_differs_in_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    text = make_report(pair[0], tmp_path / "page.html", against=pair[0]).read_text()

    assert "Recipe, code and inputs are the same." in text
    assert {cells[3] for key, cells in rows(text).items() if key.startswith("score ")} == {"equal"}


def test_the_command_compares_and_leaves_the_report_of_the_run_alone(orch: Any, pair: tuple[Path, Path]) -> None:
    ours, theirs = pair

    shown = orch("report", str(ours), "--against", str(theirs))

    page = ours / "report_against_theirs.html"
    assert shown.stdout.strip() == str(page)
    assert "against <b>theirs</b>" in page.read_text()
    assert not (ours / "report.html").exists()
