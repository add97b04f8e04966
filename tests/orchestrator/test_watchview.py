"""What the watch view shows: at 80 columns, of one stage and of a thousand, whatever its words hold."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts import write_json
from orchestrator.glance import LOOKS_A_TURN, MOST_POINTS, Glance, Picture, Series, Warned
from orchestrator.journal import Journal
from orchestrator.launcher import Waiting
from orchestrator.state import Ending, Launch, StageState, close_attempt, open_attempt, write_launch, write_state
from orchestrator.status import Answer
from orchestrator.watchview import Trouble, frame, sparkline


def make_run(directory: Path, names: list[str], *, launcher: str = "local") -> Path:
    """Makes a run whose stages all wait."""
    for name in names:
        (directory / name).mkdir(parents=True)
        output = {"model": {"kind": "report", "path": str(directory / name / "model")}}
        document = {"name": name, "stage": "toy", "fingerprint": "f", "outputs": output, "steps": 400, "after": []}
        write_json(directory / name / "stage.json", document)
    stages = tuple({"name": name, "action": "run", "reason": "has not run yet"} for name in names)
    write_launch(
        directory,
        Launch(recipe="toy", launcher=launcher, host="h", user="u", started=time.time() - 90, stages=stages),
    )
    return directory


def run_stage(folder: Path, *, step: int = 120) -> None:
    """Lets a stage be at a step, with curves."""
    open_attempt(folder, launcher="big", job_id="4711", nodes=("n1", "n2"))
    journal = Journal(folder)
    for at in range(1, 21):
        values = {"loss": 5.0 / at, "samples_per_s": 100.0 + at, "data_wait_share": 0.02, "grad_norm": 1.5}
        journal.metrics(at, values)
    journal.append("straggler", step=20, rank=3, node="n2", times=1.8)
    journal.close()
    count = {"done": step, "total": 400, "unit": "step"}
    shown = {**count, "rate_per_s": 2.0, "eta_s": 140.0, "time": time.time() + 1, "values": {"loss": 0.25}, "notes": []}
    write_json(folder / "progress.json", shown)


def text_of(picture: Picture, width: int = 80, height: int = 24, **more: Any) -> str:
    lines = frame(picture, width, height, **more)
    assert len(lines) <= height
    return "\n".join(line.plain for line in lines)


def test_a_running_stage_shows_how_far_it_is_its_curves_and_where_it_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "toy", ["shards", "gcg", "export"], launcher="big")
    run_stage(run / "gcg")
    text = text_of(Glance(run).look(Answer()))

    assert text.splitlines()[0].startswith("toy  running  on big  for 1m3")
    assert "3 stages: 1 running, 2 waiting" in text
    assert "▶ gcg     running    120/400 steps  30%  ETA 2m20s  2 steps/s" in text
    assert "    loss       █▄▃▂▂▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁  0.25" in text
    assert all(label in text for label in ("samples/s", "data wait", "grad norm", "2.0%", "job 4711 on n1, n2"))
    assert "gcg: step 20: rank 3 (n2) needs 1.8 times the median" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_what_waits_in_a_queue_says_why_and_until_when(tmp_path: Path) -> None:
    run = make_run(tmp_path / "toy", ["gcg"], launcher="big")
    waiting = Waiting(job_id="12", reason="it waits for free nodes (Resources)", estimated_start=4e9, state="PENDING")
    text = text_of(Glance(run).look(Answer(waiting={"gcg": waiting}, time=time.time())), width=120)

    assert "… gcg  queued     job 12: it waits for free nodes (Resources); begins about 2096-10-02" in text


def test_a_failed_attempt_says_why_in_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "toy", ["gcg"])
    run_stage(run / "gcg")
    close_attempt(run / "gcg", Ending(state="failed", cause="node_failure", detail="n1 is\ngone \x1b[2J"))
    text = text_of(Glance(run).look(Answer()))

    assert "✗ gcg  failed     node_failure after 0s  at step 20" in text
    assert "    attempt 1 failed (node_failure) at step 20: n1 is gone  [2J" in text
    assert "\x1b" not in text


def test_of_a_thousand_stages_it_shows_what_matters_and_counts_the_rest(tmp_path: Path) -> None:
    names = [f"stage_{at:04}" for at in range(1000)]
    run = make_run(tmp_path / "toy", names)
    for name in names[:500]:
        write_state(run / name, StageState(state="cancelled"))
    open_attempt(run / names[700], launcher="local", job_id="1", nodes=("here",))
    close_attempt(run / names[700], Ending(state="failed", cause="code_error", detail="a mistake"))
    run_stage(run / names[800])
    text = text_of(Glance(run).look(Answer()))

    assert "1000 stages: 1 running, 1 failed, 500 cancelled, 498 waiting" in text
    assert "▶ stage_0800" in text
    assert "grad norm" in text
    assert "✗ stage_0700" in text
    assert "488 cancelled, 498 waiting" in text or "cancelled, 498 waiting" in text.splitlines()[-5]


def test_utilisation_is_shown_where_it_is_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path / "toy", ["gcg"])
    run_stage(run / "gcg")
    before = text_of(Glance(run).look(Answer()))
    journal = Journal(run / "gcg")
    journal.metrics(21, {"mfu": 0.4321})
    journal.close()

    assert "MFU" not in before
    assert "43.2%" in text_of(Glance(run).look(Answer()))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (20, 5), (200, 60), (1, 1), (10, 2)])
def test_it_fits_into_any_terminal(tmp_path: Path, width: int, height: int) -> None:
    run = make_run(tmp_path / "toy", [f"a_stage_with_a_long_name_{at}" for at in range(30)])
    for at in range(3):
        run_stage(run / f"a_stage_with_a_long_name_{at}")
    picture = replace(
        Glance(run).look(Answer()), warnings=tuple(Warned(time=1.0, stage="s", text="t" * 300) for _ in range(9))
    )

    text = text_of(picture, width, height, trouble=Trouble(text="x" * 300, since_s=9.0))
    assert all(len(line) <= width for line in text.splitlines())


def test_without_utf8_every_sign_is_ascii(tmp_path: Path) -> None:
    run = make_run(tmp_path / "toy", ["gcg", "a_name_that_is_much_longer_than_there_is_room_for"])
    run_stage(run / "gcg")

    assert text_of(Glance(run).look(Answer()), 80, 24, ascii_only=True).isascii()


def test_trouble_is_said_and_what_was_known_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path / "toy", ["gcg"])
    text = text_of(Glance(run).look(Answer()), trouble=Trouble(text="Stale file handle", since_s=75.0))

    assert "no news from the run folder for 1m15s: Stale file handle" in text
    assert "gcg" in text
    assert frame(None, 80, 24)[0].plain == "reading the run ..."


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 5, ""), ([1.0], 5, "▁"), ([1.0, 1.0, 1.0], 5, "▁▁▁"), ([0.0, 7.0], 5, "▁█"),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8, "▁▂▃▄▅▆▇█"), ([0.0, 0.0, 4.0, 4.0], 2, "▁█"), ([1.0, 2.0], 0, ""),
        ([1e300, -1e300], 2, "█▁"), ([5.0, 5.0 + 1e-12], 2, "▁▁"),
    ],
)  # fmt: skip
def test_a_sparkline_is_as_wide_as_it_may_be(values: list[float], width: int, expected: str) -> None:
    assert sparkline(values, width) == expected


def test_a_curve_stays_bounded_and_keeps_its_shape() -> None:
    series = Series()
    for at in range(100_000):
        series.add(float(at))
    series.add(float("nan"))

    assert len(series.points) < 2 * MOST_POINTS
    assert series.points == sorted(series.points)
    assert series.points[0] < 100
    assert series.points[-1] > 99_000
    assert series.last is not None
    assert math.isnan(series.last)  # shown as it is, and no point of the curve


def test_only_what_has_changed_is_read_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "toy", ["one", "two"])
    glance = Glance(run)
    first = {stage["name"]: stage for stage in glance.look(Answer()).status["stages"]}
    run_stage(run / "two")
    second = {stage["name"]: stage for stage in glance.look(Answer()).status["stages"]}

    assert second["one"] is first["one"]
    assert second["two"]["state"] == "running"


def test_of_many_stages_any_is_seen_to_begin_within_some_looks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "toy", [f"stage_{at:02}" for at in range(60)])
    glance = Glance(run)
    glance.look(Answer())
    run_stage(run / "stage_55")
    seen = [glance.look(Answer()).status["stages"][55]["state"] for _ in range(LOOKS_A_TURN)]

    assert seen[-1] == "running"


def test_curves_go_on_where_they_were_and_their_stage_leaves_its_warnings_behind(tmp_path: Path) -> None:
    run = make_run(tmp_path / "toy", ["gcg"])
    run_stage(run / "gcg")
    glance = Glance(run)
    before = len(glance.look(Answer()).series["gcg"]["loss"].points)
    journal = Journal(run / "gcg")
    journal.metrics(21, {"loss": 0.2})
    journal.close()
    after = len(glance.look(Answer()).series["gcg"]["loss"].points)
    close_attempt(run / "gcg", Ending(state="failed", cause="hang", detail=""))
    ended = glance.look(Answer())

    assert (before, after) == (20, 21)
    assert ended.series == {}
    assert [warned.stage for warned in ended.warnings] == ["gcg"]


def test_a_run_that_was_launched_anew_is_read_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path / "toy", ["gcg"])
    glance = Glance(run)
    glance.look(Answer())
    make_run(tmp_path / "other", ["gcg", "export"])
    (tmp_path / "other" / "export").rename(run / "export")
    (tmp_path / "other" / "launch.json").rename(run / "launch.json")

    assert len(glance.look(Answer()).status["stages"]) == 2


def test_a_folder_that_is_gone_is_no_run_without_stages(tmp_path: Path) -> None:
    run = make_run(tmp_path / "toy", ["gcg"])
    glance = Glance(run)
    glance.look(Answer())
    run.rename(tmp_path / "elsewhere")

    with pytest.raises(FileNotFoundError, match="is gone"):
        glance.look(Answer())
