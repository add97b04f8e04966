"""A thousand stages, and curves of a hundred thousand points: the page opens at once, and no peak is lost."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.artifacts import write_json
from orchestrator.report import make_report
from orchestrator.state import Attempt, Launch, StageState, write_launch, write_state
from tests.browser import Browser
from tests.orchestrator.report.runs import STARTED, step_events

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.slow]

STAGES, POINTS, PEAK = 1000, 100_000, 77_777
OPENS_WITHIN_S = 12.0  # the bar is 3 s on a quiet machine; a busy one must not decide
TRIES = 2


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def write_wide_run(run: Path, stages: int) -> Path:
    """Writes a run of many stages that all have trained for twenty steps, each after two others."""
    names = [f"stage_{number:04d}" for number in range(stages)]
    for number, name in enumerate(names):
        start = STARTED + 40 * number
        after = sorted({names[max(0, number - 1)], names[number // 2]} - {name})
        (run / name).mkdir(parents=True)
        document = {
            "name": name, "stage": "glamm_gcg_tuning", "after": after, "inputs": {}, "fingerprint": f"{number:064x}",
            "outputs": {"model": {"kind": "checkpoint", "path": str(run / name / "model")}}, "steps": 20, "seed": 1,
        }  # fmt: skip
        write_json(run / name / "stage.json", document)
        tries = tuple(
            Attempt(number=n, launcher="local", job_id="1", nodes=("here",), started=start + 15 * (n - 1),
                    ended=start + 15 * n, state=state, cause=cause, from_step=0, to_step=20)
            for n, state, cause in ((1, "failed", "node_failure"), (2, "done", None))
        )  # fmt: skip
        write_state(run / name, StageState(state="failed", attempts=tries))
        lines = [{"event": "attempt", "number": 2}]
        for step in range(1, 21):
            lines += step_events(step, 20, start + 20 + 0.4 * step)
        (run / name / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entries = tuple({"name": name, "action": "run", "reason": "never ran"} for name in names)
    launch = Launch(
        recipe="wide", launcher="local", host="here", user="ada", started=STARTED, ended=STARTED + 1, stages=entries
    )
    write_launch(run, launch)
    return run


def write_long_curves(run: Path) -> None:
    lines = []
    for step in range(1, POINTS + 1):
        loss = 40.0 if step == PEAK else 2 + math.sin(step / 3000) + 0.3 * math.sin(step * 12.9)
        lines.append({"event": "loss", "time": STARTED + step, "step": step, "value": loss, "data_wait_s": 0.0})
        values = {"grad_norm": 1 + math.cos(step), "lr": 1e-4 * (1 - step / POINTS)}
        lines.append({"event": "metrics", "time": STARTED + step, "step": step, "values": values})
    (run / "stage_0000/journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def opened_s(browser: Browser, report: Path) -> float:
    """Returns what an opening, drawn, costs the page's thread: on a loaded machine a page waits for its turn."""
    found = []
    for _ in range(TRIES):
        page = browser.page()
        before = page.worked_s()
        page.open(report.as_uri())
        found.append(page.worked_s() - before)
        assert page.complaints == []
        page.close()
    return min(found)


def test_a_thousand_stages_open_at_once(browser: Browser, tmp_path: Path) -> None:
    run = write_wide_run(tmp_path / "wide", STAGES)

    report = make_report(run, run / "report.html")

    assert opened_s(browser, report) < OPENS_WITHIN_S
    assert report.stat().st_size < 20_000_000
    page = browser.page()
    page.open(report.as_uri())
    page.click("details.later summary")
    page.wait("document.querySelector('details.later figure.curves svg.chart polyline')")
    assert page.evaluate("document.querySelectorAll('details.later > script').length") == STAGES - 1
    page.close()


def test_a_hundred_thousand_points_open_at_once_and_keep_their_peak(browser: Browser, tmp_path: Path) -> None:
    run = write_wide_run(tmp_path / "long", 2)
    write_long_curves(run)

    report = make_report(run, run / "report.html")

    assert opened_s(browser, report) < OPENS_WITHIN_S
    page = browser.page()
    page.open(report.as_uri())
    told = page.evaluate("document.querySelector('figure.curves .honest').textContent")
    assert told == "Of 100,000 points, the lowest and the highest of each of 4,000 groups are drawn."
    points = page.evaluate("document.querySelector('figure.curves polyline').getAttribute('points').split(' ').length")
    assert points == 8000
    highest = page.evaluate(
        "(() => { const chart = chartOf(document.querySelector('figure.curves'));"
        " const [u, v] = chart.lines[0].points.reduce((best, one) => one[1] < best[1] ? one : best);"
        " return [chart.low + u, valueAt(chart, v)]; })()"
    )
    assert highest == [PEAK, pytest.approx(40.0, rel=1e-3)]
    page.drag("figure.curves .plane", 0.77, 0.79)
    steps = page.evaluate("document.querySelector('figure.curves .plane').viewBox.baseVal.width")
    assert steps < 4000
    page.close()
