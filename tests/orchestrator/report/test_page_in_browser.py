"""The report in a real browser: drawn without a complaint, zoomed, switched, dark, light, on a phone, harmless."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.artifacts import write_json
from orchestrator.report import make_report
from orchestrator.state import Attempt
from tests.browser import Browser, Page
from tests.orchestrator.report.runs import CHAIN, STARTED, write_run
from tests.stages.scenes import scene

pytestmark = pytest.mark.needs("chromium", "torch")

CHART = "figure.curves svg.chart"
EVIL = "\"><script>document.title='owned';alert(1)</script><img src=x onerror=\"document.title='owned'\"></title></svg>"
KEY = "'\"><img src=x onerror=alert(4)>"  # a key has no dot and no slash
CAPTION = "</script><svg/onload=alert(2)>'\"><a href=javascript:alert(3)>x</a>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def attempt(number: int, state: str, **given: object) -> Attempt:
    start = STARTED + 100 * number
    plain = Attempt(
        number=number, launcher="local", job_id="7", nodes=("workstation",), started=start, ended=start + 83,
        state="done",
    )  # fmt: skip
    return replace(plain, state=state, **given)


@pytest.fixture(scope="module")
def report(evaluated_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_report(evaluated_run, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    page = browser.page()
    page.open(report.as_uri())
    yield page
    page.close()


def count(page: Page, selector: str) -> int:
    return int(page.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length"))


def visible(first: str, inside: str) -> str:
    """Returns JavaScript that tells of everything inside of the first of something whether it is shown."""
    every = f"[...document.querySelector('{first}').querySelectorAll('{inside}')]"
    return f"{every}.map(one => getComputedStyle(one).display !== 'none')"


def test_everything_is_drawn_and_nothing_is_complained_of_or_asked_for(page: Page, report: Path) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")

    assert (page.complaints, page.dialogs) == ([], [])
    assert {address for address in page.requests if not address.startswith("data:")} == {report.as_uri()}
    assert count(page, "svg.chain .node") == len(CHAIN)
    assert count(page, "svg.timeline .try") == len(CHAIN) + 1
    assert count(page, CHART) >= 4
    assert page.evaluate(
        "[...document.querySelectorAll('svg.chart polyline')].every(one => one.getBoundingClientRect().width > 50)"
    )
    assert page.evaluate("[...document.querySelectorAll('image')].every(one => one.getBoundingClientRect().width > 50)")


def test_dragging_over_a_curve_shows_these_steps_and_a_double_click_shows_all_again(page: Page) -> None:
    page.evaluate("document.querySelector('.charts > :nth-child(2) svg.chart').id = 'chart'")  # of 300 steps
    box = "document.querySelector('#chart .plane').viewBox.baseVal"
    before = page.evaluate(f"[{box}.x, {box}.y, {box}.width, {box}.height]")

    page.drag("#chart .plane", 0.5, 0.75)
    zoomed = page.evaluate(f"[{box}.x, {box}.width, {box}.height]")
    labels = page.evaluate("[...document.querySelectorAll('#chart .axes text')].map(one => one.textContent)")
    page.click("#chart", clicks=2)
    after = page.evaluate(f"[{box}.x, {box}.y, {box}.width, {box}.height]")

    assert before[0] == 0
    assert zoomed[0] == pytest.approx(0.5 * before[2], rel=0.02)
    assert zoomed[1] == pytest.approx(0.25 * before[2], rel=0.02)
    assert zoomed[2] < 0.7 * before[3]  # the height follows what is in view
    assert "180" in labels
    assert "60" not in labels
    assert after == before


def test_buttons_zoom_for_those_who_cannot_drag(page: Page) -> None:
    page.place("figure.curves")
    page.wait("document.querySelector('figure.curves [data-zoom=in]')")
    box = "document.querySelector('figure.curves .plane').viewBox.baseVal"
    whole = page.evaluate(f"{box}.width")

    widths = []
    for how in ("in", "in", "right", "out", "all"):
        page.click(f"figure.curves [data-zoom={how}]")
        widths.append(page.evaluate(f"{box}.width") / whole)

    assert widths == [pytest.approx(share) for share in (0.5, 0.25, 0.25, 0.5, 1.0)]


def test_the_pointer_reads_values_off_a_curve(page: Page) -> None:
    page.place("figure.curves")
    page.wait("document.querySelector('figure.curves .readout')")

    page.mouse("mouseMoved", page.place("figure.curves .plane", across=0.5))

    told = page.evaluate("document.querySelector('figure.curves .readout').textContent")
    assert told.startswith(("step 30: loss, each step ", "step 31: loss, each step "))


def test_smoothing_and_lines_are_switched(page: Page) -> None:
    seen = visible("figure.curves", "polyline")
    page.evaluate(
        "document.querySelectorAll('figure.curves')[0].querySelectorAll('.key input')"
        ".forEach((one, index) => { one.id = `line-${index}`; })"
    )
    first = page.evaluate(seen)

    page.click("#smooth")
    rough = page.evaluate(seen)
    page.click("#line-0")
    without = page.evaluate(seen)

    assert first == [True, True, True, True]  # each step, smoothed, two terms
    assert rough == [True, False, True, True]
    assert without == [False, False, True, True]


def test_each_phrase_shows_and_hides_its_mask(page: Page) -> None:
    shown = visible(".picture", ".mask")
    before = page.evaluate(shown)
    colour = page.evaluate("getComputedStyle(document.querySelector('.mask path')).fill")

    page.click(".picture [data-mask]")
    one = page.evaluate(shown)
    page.click(".picture [data-all=false]")
    none = page.evaluate(shown)
    page.click(".picture [data-all=true]")
    every = page.evaluate(shown)

    assert len(before) == 3  # two true ones; the model forgot one
    assert all(before)
    assert one == [False, True, True]
    assert page.evaluate("document.querySelector('.picture [data-mask]').getAttribute('aria-pressed')") == "true"
    assert not any(none)
    assert all(every)
    assert colour == page.evaluate("getComputedStyle(document.querySelector('.phrase.m0')).backgroundColor")


def test_a_mask_lies_on_what_it_means(page: Page) -> None:
    share = page.evaluate(
        "(() => { const view = document.querySelector('.view').getBoundingClientRect();"
        " const mask = document.querySelector('.view .mask path').getBoundingClientRect();"
        " return [(mask.x - view.x) / view.width, (mask.right - view.x) / view.width, mask.height / view.height]; })()"
    )

    assert share == [pytest.approx(value, abs=0.02) for value in (4 / 40, 14 / 40, 30 / 40)]


@pytest.mark.parametrize(("dark", "paper"), [(False, "rgb(255, 255, 255)"), (True, "rgb(20, 24, 29)")])
def test_it_is_light_or_dark_as_its_reader_likes(browser: Browser, report: Path, paper: str, *, dark: bool) -> None:
    page = browser.page(dark=dark)
    page.open(report.as_uri())

    faint = page.evaluate(CONTRAST)

    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
    assert faint == []
    page.close()


# texts whose contrast to what is behind them is below WCAG's 4.5
CONTRAST = """(() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = node => { for (let at = node; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour.length === 3 || colour[3] > .9) return colour; } return [255, 255, 255]; };
  return [...document.querySelectorAll('p, td, th, h1, h2, h3, a, button, summary, figcaption, li, span')]
    .filter(node => !node.closest('svg') && node.textContent.trim() && node.getClientRects().length)
    .filter(node => [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim()))
    .map(node => { const both = [light(parse(getComputedStyle(node).color)), light(behind(node))];
      const [a, b] = both.sort((x, y) => y - x);
      return [(a + .05) / (b + .05), node.outerHTML.slice(0, 120)]; })
    .filter(([ratio]) => ratio < 4.5);
})()"""


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser, report: Path) -> None:
    page = browser.page(width_px=390, height_px=844, phone=True)
    page.open(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")

    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    page.close()


def test_the_page_is_whole_without_its_script(browser: Browser, report: Path) -> None:
    page = browser.page()
    page.call("Emulation.setScriptExecutionDisabled", {"value": True})
    page.open(report.as_uri(), scripted=False)

    assert count(page, "svg.chart polyline") > 4
    assert page.evaluate("getComputedStyle(document.querySelector('.switch')).display") == "none"
    assert page.evaluate("getComputedStyle(document.querySelector('.mask')).display") != "none"
    page.close()


def test_what_can_be_pressed_has_a_name_and_pictures_have_words(page: Page) -> None:
    page.place("figure.curves")
    page.wait("document.querySelector('[data-zoom]')")

    assert page.evaluate(
        "[...document.querySelectorAll('button, a, summary, label')].every(one => one.textContent.trim().length > 0)"
    )
    assert page.evaluate(
        "[...document.querySelectorAll('svg[role=img], [role=img]')].every(one => one.getAttribute('aria-label'))"
    )
    assert page.evaluate("document.documentElement.lang") == "en"


def test_nothing_that_data_says_ever_runs(browser: Browser, tmp_path: Path) -> None:
    samples = tuple(replace(scene(n), key=f"k{n}{KEY}", caption=scene(n).caption + CAPTION + EVIL) for n in range(2))
    evil = attempt(1, "done", detail=EVIL, evidence=(EVIL,), decision=EVIL)
    run = write_run(tmp_path / "it's <b>bars", {}, samples=samples, attempts={"align": (evil,)}, note=EVIL)
    (run / "recipe.yaml").write_text(f"name: {json.dumps(EVIL)}\nstages: {{}}\n")
    write_json(run / "code/COMMIT", {"commit": EVIL, "dirty": True})
    (run / "code/changes.diff").write_text(EVIL)
    with (run / "gcg/journal.jsonl").open("a") as journal:
        for event in (
            {"event": "metrics", "step": 5, "values": {EVIL: 1.0, f"loss/{EVIL}": 2.0, f"eval/{EVIL}/x": 1.0}},
            {"event": "straggler", "step": EVIL, "rank": EVIL, "node": EVIL, "times": EVIL},
        ):
            journal.write(json.dumps(event) + "\n")
    document = json.loads((run / "align/stage.json").read_text())
    write_json(run / "align/stage.json", {**document, "stage": EVIL, "inputs": {EVIL: {"kind": EVIL, "path": EVIL}}})

    page = browser.page()
    page.open(make_report(run, run / "report.html", against=run).as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")

    assert page.dialogs == []
    assert page.evaluate("document.title") != "owned"
    assert page.complaints == []  # not even a refusal: nothing has tried
    assert count(page, "script") == 1
    assert count(page, "a[href^=javascript], img[onerror], [onload]") == 0
    assert page.evaluate("document.body.textContent.includes('<script>document.title')")
    page.close()


def test_a_script_that_slipped_in_would_not_run(browser: Browser, report: Path, tmp_path: Path) -> None:
    page = browser.page()
    slipped = tmp_path / "slipped.html"
    planted = "<script>document.title='owned'</script><img src='x' onerror=\"document.title='owned'\">"
    slipped.write_text(report.read_text(encoding="utf-8").replace("<main>", f"<main>{planted}"), encoding="utf-8")

    page.open(slipped.as_uri())

    assert page.evaluate("document.title") != "owned"
    assert any("Content Security Policy" in complaint for complaint in page.complaints)
    assert page.evaluate("document.documentElement.className") == "scripted"  # ours has run
    page.close()
