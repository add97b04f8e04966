"""The report of a run: true, complete, harmless and self-contained, whatever state the run is in."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from orchestrator.artifacts import Report, write_json
from orchestrator.errors import InputError, SurroundingsError
from orchestrator.goodput import spending
from orchestrator.report import make_report
from orchestrator.report.gather import gather, read_curves
from orchestrator.report.text import duration
from orchestrator.run import Run
from orchestrator.state import Attempt
from tests.orchestrator.report.runs import CHAIN, STARTED, fingerprint_of, write_run
from tests.stages.scenes import scene

VOID = {"meta", "br", "img", "hr", "input", "link"}


class Balance(HTMLParser):
    """Follows the tags of a page, and collects where it points to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.alts: list[str] = []
        self.views: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.sources += [given[name] for name in ("src", "srcset", "data", "action") if name in given]
        self.sources += [given["href"]] if tag == "image" else []
        self.links += [given["href"]] if "href" in given and tag != "image" else []
        self.ids += [given["id"]] if "id" in given else []
        self.alts += [given.get("alt", "")] if tag == "img" else []
        self.views += [given.get("aria-label", "")] if given.get("class") == "view" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def read(page: Path) -> tuple[str, Balance]:
    text = page.read_text(encoding="utf-8")
    balance = Balance()
    balance.feed(text)
    return text, balance


def attempt(number: int, state: str, **given: object) -> Attempt:
    plain = Attempt(
        number=number, launcher="local", job_id="7", nodes=("workstation",), started=STARTED + 100 * number,
        ended=STARTED + 100 * number + 83, state="done",
    )  # fmt: skip
    return replace(plain, state=state, **given)


@pytest.fixture
def finished(copied: Callable[[str], Path]) -> Path:
    return copied("bars")


def test_a_finished_run_is_told_from_result_to_commands(finished: Path) -> None:
    text, balance = read(make_report(finished, finished / "report.html"))

    assert (balance.open, balance.wrong) == ([], [])
    assert "12 of 12 stages are done" in text
    assert "GCG mIoU is <b>0.667</b> on 6 held-out images; the same architecture with fresh weights has 0.000" in text
    for name in CHAIN:
        assert f'id="stage-{name}"' in text
    assert "1: failed, steps 0 to 170, 1 min 23 s, node_failure" in text
    assert "rank 1 was killed" in text
    assert "attempt 2</text>" in text  # in the loss curve
    assert "METEOR is NLTK&#x27;s" in text
    assert "compat: mean IoU of matched masks" in text
    assert "strict: mean IoU over all reference masks" in text
    assert "Published numbers, GranD-f val, as printed (times 100)" in text
    assert re.search(r"<b>Not comparable</b>: the published numbers are of GranD-f val, these scores of data of", text)
    assert re.search(r"<td><b>this model</b></td>(<td class=.number.>[\d.]+</td>){5}", text)
    assert "<td>GLaMM</td>" in text
    assert "arXiv 2311.03356, table 3" in text
    assert "torch 2.13.0" in text
    assert "git checkout 0123abcd" in text
    assert "with uncommitted changes" in text
    assert re.search(r"held_out\.shards.*?6.*?made here", text)
    assert f"orch predict {finished}/export/model IMAGE" in text


def test_the_page_asks_the_network_for_nothing(finished: Path) -> None:
    text, balance = read(make_report(finished, finished / "report.html"))

    assert balance.sources
    assert all(source.startswith("data:image/png;base64,") for source in balance.sources)
    assert all(link.startswith("#") for link in balance.links)
    assert {link[1:] for link in balance.links} <= set(balance.ids)
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(", text)


def test_every_picture_is_described_in_words(finished: Path) -> None:
    _, balance = read(make_report(finished, finished / "report.html"))

    assert len(balance.views) == 18  # six images: the truth, the trained model, the untrained one
    assert balance.views[0] == "Ground truth: A red bar stands left of a green bar."
    assert balance.views[9] == "Ground truth: the red bar; the green bar"
    assert all(balance.views)


def test_an_evaluation_without_layers_is_shown_as_it_was_drawn(finished: Path) -> None:
    folder = finished / "score/report"
    metrics = json.loads((folder / "metrics.json").read_text())
    for picture in metrics["pictures"]:
        del picture["layers"]
    write_json(folder / "metrics.json", metrics)
    Report(folder).commit(fingerprint_of("score"))

    _, balance = read(make_report(finished, finished / "report.html"))

    assert len(balance.alts) == 6
    assert balance.alts[0].startswith("Held-out image scene0000. Ground truth: A red bar stands left of")


def test_a_failed_run_says_what_failed_and_how_to_go_on(tmp_path: Path) -> None:
    broken = attempt(1, "failed", from_step=0, to_step=600, cause="diverged", detail="the loss is not finite.")
    waiting = dict.fromkeys(("sft", "score", "export"), "waiting")
    run = write_run(tmp_path / "bars", {"gcg": "failed", **waiting}, attempts={"gcg": (broken,)}, note="a note")

    text, balance = read(make_report(run, run / "report.html"))

    assert (balance.open, balance.wrong) == ([], [])
    assert "8 of 12 stages are done; gcg failed (diverged): the loss is not finite." in text
    assert "No stage of this run has evaluated a model yet." in text
    assert "a note" in text
    assert f"orch resume {run}" in text


def test_a_run_that_goes_on_says_where_it_is(tmp_path: Path) -> None:
    running = attempt(1, "running", from_step=0, ended=None)
    waiting = dict.fromkeys(("sft", "score", "export"), "waiting")
    run = write_run(tmp_path / "bars", {"gcg": "running", **waiting}, attempts={"gcg": (running,)}, ended=None)
    write_json(
        run / "gcg/progress.json",
        {"done": 600, "total": 1200, "unit": "step", "time": running.started + 5, "values": {}},
    )

    with Run(run).lock("orch launch"):
        text, _ = read(make_report(run, run / "report.html"))

    assert "8 of 12 stages are done; gcg is running, step 600 of 1200" in text
    assert "▶ running" in text
    assert "Loss of gcg" in text


def test_a_run_whose_supervisor_vanished_is_no_longer_called_running(tmp_path: Path) -> None:
    running = attempt(1, "running", from_step=0, ended=None)
    waiting = dict.fromkeys(("sft", "score", "export"), "waiting")
    run = write_run(tmp_path / "bars", {"gcg": "running", **waiting}, attempts={"gcg": (running,)}, ended=None)

    text, _ = read(make_report(run, run / "report.html"))

    assert "gcg failed (unknown): the supervisor process" in text


def test_a_run_of_which_nothing_has_started_has_a_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "bars", dict.fromkeys(CHAIN, "waiting"))

    text, balance = read(make_report(run, tmp_path / "elsewhere" / "page.html"))

    assert (balance.open, balance.wrong) == ([], [])
    assert "0 of 12 stages are done" in text
    assert "No stage has trained yet." in text


def test_scores_of_an_older_plan_are_not_shown(finished: Path) -> None:
    document = json.loads((finished / "score/stage.json").read_text())
    write_json(finished / "score/stage.json", {**document, "fingerprint": "another"})

    text, _ = read(make_report(finished, finished / "report.html"))

    assert "No stage of this run has evaluated a model yet." in text
    assert "11 of 12 stages are done" in text


def test_nothing_from_data_becomes_markup(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    samples = tuple(replace(scene(n), key=f"k{n}", caption=scene(n).caption + evil) for n in range(2))
    bad = attempt(1, "done", detail=evil)
    run = write_run(tmp_path / "bars", {}, samples=samples, attempts={"align": (bad,)}, note=evil)
    (run / "recipe.yaml").write_text(f"name: {evil}\n")
    write_json(run / "code/COMMIT", {"commit": evil, "dirty": False})

    text, balance = read(make_report(run, run / "report.html"))

    assert evil not in text
    assert text.count("<script") == 1
    assert "onerror=alert(2)&gt;" in text
    assert not [source for source in balance.sources if not source.startswith("data:")]
    assert not re.search(r"git checkout", text)


def test_a_picture_outside_of_its_report_is_not_shown(finished: Path) -> None:
    folder = finished / "score/report"
    (finished / "secret.png").write_bytes((folder / "pictures/gcg_000.png").read_bytes())
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["pictures"] = [
        {"path": path, "benchmark": "gcg", "key": "k", "text": "t"}
        for path in ("../../secret.png", str(finished / "secret.png"), "metrics.json", "pictures/none.png")
    ]
    write_json(folder / "metrics.json", metrics)
    Report(folder).commit(fingerprint_of("score"))

    text, balance = read(make_report(finished, finished / "report.html"))

    assert balance.sources == []
    assert "4 more pictures are in the run folder" in text


def test_layers_outside_of_their_report_are_not_read(finished: Path) -> None:
    folder = finished / "score/report"
    layers = json.loads((folder / "pictures/gcg_000.json").read_text())
    (finished / "secret.png").write_bytes((folder / "pictures/gcg_000.png").read_bytes())
    write_json(finished / "secret.json", layers)
    for name, image in (("up", "../../secret.png"), ("text", "metrics.json"), ("far", "/etc/passwd")):
        write_json(folder / f"pictures/{name}.json", {**layers, "image": image})
    write_json(folder / "pictures/torn.json", {**layers, "panels": ["no panel"], "width_px": "<b>"})
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["pictures"] = [
        {"path": "pictures/none.png", "layers": layers, "benchmark": "gcg", "key": "k", "text": "t"}
        for layers in ("../../secret.json", *(f"pictures/{name}.json" for name in ("up", "text", "far", "torn")))
    ]
    write_json(folder / "metrics.json", metrics)
    Report(folder).commit(fingerprint_of("score"))

    text, balance = read(make_report(finished, finished / "report.html"))

    assert balance.sources == []
    assert "5 more pictures are in the run folder" in text


def test_the_page_stays_small_enough_to_be_mailed(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.report.samples.PAGE_BYTES", 10_000)

    text, balance = read(make_report(finished, finished / "report.html"))

    assert 1 <= len(balance.sources) <= 5
    assert "more pictures are in the run folder" in text


def test_a_step_that_was_computed_again_counts_once(tmp_path: Path) -> None:
    lines = [
        {"event": "loss", "step": step, "value": value} for step, value in ((1, 3.0), (2, 2.0), (2, 1.5), (3, 1.0))
    ]
    lines.append({"event": "metrics", "step": 3, "values": {"loss": 9.0, "lr": 0.1}})
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "lo')

    curves = read_curves(tmp_path)

    assert curves == {"loss": ((1.0, 3.0), (2.0, 1.5), (3.0, 1.0)), "lr": ((3.0, 0.1),)}


def test_stages_are_linked_by_what_they_read(finished: Path) -> None:
    parents = {stage.name: stage.parents for stage in gather(finished).stages}

    assert parents["region"] == ("regions", "align")
    assert parents["score"] == ("held_out", "sft")
    assert parents["scenes"] == ()


def test_what_is_no_run_is_refused_and_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "bars", dict.fromkeys(CHAIN, "waiting"))
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match="is not a run folder"):
        make_report(tmp_path / "none", tmp_path / "page.html")
    with pytest.raises(SurroundingsError, match=re.escape(f"cannot write {tmp_path}/file/page.html")):
        make_report(run, tmp_path / "file/page.html")


def test_times_are_written_in_their_two_largest_units() -> None:
    assert [duration(seconds) for seconds in (0.34, 59.2, 83, 3660, 90000)] == [
        "0.3 s", "59 s", "1 min 23 s", "1 h 01 min", "25 h 00 min",
    ]  # fmt: skip


def test_planted_secrets_never_appear(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = {
        "WANDB_API_KEY": "wandb5ecret0123456789",
        "MLFLOW_TRACKING_PASSWORD": 'quo"ted<5ecret>',
        "X_TOKEN": "5ecret/slash",
    }
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    words = " ".join(["https://ada:pass5ecret@host/x", "token hf_5ecret5ecret5ecret5", *planted.values()])
    document = json.loads((finished / "align/stage.json").read_text())
    write_json(finished / "align/stage.json", {**document, "stage": words})
    state = json.loads((finished / "align/state.json").read_text())
    state["attempts"][0] |= {
        "detail": words,
        "decision": words,
        "evidence": [words],
        "nodes": [words],
        "cause": "unknown",
    }
    write_json(finished / "align/state.json", state)
    (finished / "recipe.yaml").write_text(f"name: bars\nvars:\n  note: {words}\n  api_key: 5ecret-key\n")
    (finished / "code/changes.diff").write_text(f"+ {words}\n")
    other = finished.parent / "other"
    shutil.copytree(finished, other)
    (other / "recipe.yaml").write_text("name: bars\nvars:\n  api_key: 5ecret-other\n")

    text = make_report(finished, finished / "report.html", against=other).read_text(encoding="utf-8")

    assert "5ecret" not in text
    assert "(hidden)" in text
    assert "://host/x" in text  # without who may read it


def test_lone_halves_of_characters_and_turned_words_do_no_harm(finished: Path) -> None:
    (finished / "code/COMMIT").write_text('{"commit": "\\ud800 \\u0000 \\u202e turned", "dirty": false}')

    text = make_report(finished, finished / "report.html").read_text(encoding="utf-8")

    assert "\u202e" not in text
    assert "\ufffd \ufffd \ufffd turned" in text


def test_everything_that_comes_from_a_run_is_escaped_in_one_place() -> None:
    folder = Path(make_report.__code__.co_filename).parent
    modules = {path.name for path in folder.glob("*.py") if re.search(r"\bescape\b", path.read_text(encoding="utf-8"))}

    assert modules == {"text.py"}


def test_time_is_split_as_it_was_recorded(finished: Path) -> None:
    text, _ = read(make_report(finished, finished / "report.html"))

    spent = spending(finished)
    assert spent.useful is not None
    assert f"<b>{100 * spent.useful:.1f} %</b> of the process time was useful" in text
    assert f"goodput {100 * spent.useful:.1f} %" in text
    region = next(stage for stage in spent.parts if stage.name == "region")
    assert region.seconds["redone"] > 0
    assert re.search(r'aria-label="region: useful [^"]*re-done [^"]*start-up', text)


def test_ranks_that_were_slow_are_listed(finished: Path) -> None:
    text, _ = read(make_report(finished, finished / "report.html"))

    part = text[text.index('id="slow-ranks"') : text.index('id="stages-and-attempts"')]
    assert part.count("<tr>") == 1 + 3 + 12  # the head; a report every hundred steps of region and gcg
    assert "1.8 times" in part
    assert "workstation" in part
