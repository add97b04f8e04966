"""The demo's page in a real browser: a picture is chosen, a box drawn, a question typed, and masks are seen."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.demo.questions import KINDS
from stages.demo.server import DemoServer
from tests.browser import Browser, Page
from tests.stages.scenes import scene

pytestmark = pytest.mark.needs("chromium", "torch")

SCENE = scene(1)  # a green bar from (4, 5) to (14, 35) and a blue one from (24, 5) to (34, 35), of 40 x 40 pixels


@pytest.fixture(scope="module")
def page(server: DemoServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        page = browser.page()
        page.open(server.address)
        page.wait("document.querySelectorAll('#kind option').length")
        yield page


def choose(page: Page, picture: bytes) -> None:
    """Chooses a file, as who clicks through the system's dialog does."""
    page.evaluate(
        "(() => { const files = new DataTransfer();"
        f" files.items.add(new File([new Uint8Array({json.dumps(list(picture))})], 'scene.png'));"
        " const input = document.getElementById('file'); input.files = files.files;"
        " input.dispatchEvent(new Event('change')); })()"
    )
    page.wait("document.getElementById('picture').complete && document.getElementById('picture').naturalWidth")


def ask(page: Page, kind: str, text: str = "") -> list[str]:
    """Chooses a question, types and sends it; returns the lines of the answer."""
    page.evaluate(f"document.getElementById('kind').value = {json.dumps(kind)}")
    page.evaluate("document.getElementById('kind').dispatchEvent(new Event('change'))")
    if text:
        page.evaluate("(() => { const field = document.getElementById('text'); field.value = ''; field.focus(); })()")
        page.call("Input.insertText", {"text": text})
    page.click("#ask")
    page.wait("!document.getElementById('ask').disabled", patience_s=60)
    lines: list[str] = page.evaluate("[...document.querySelectorAll('#lines li')].map(one => one.textContent)")
    return lines


def draw_box(page: Page, box: tuple[float, float, float, float]) -> None:
    corners = [page.place("#boxes", across=box[0], down=box[1]), page.place("#boxes", across=box[2], down=box[3])]
    page.mouse("mousePressed", corners[0], clicks=1)
    page.mouse("mouseMoved", corners[1], clicks=1)
    page.mouse("mouseReleased", corners[1], clicks=1)


def state(page: Page) -> str:
    return str(page.evaluate("document.getElementById('state').textContent"))


def test_a_picture_is_described_pointed_into_and_asked_about_by_a_box(page: Page, server: DemoServer) -> None:
    assert ask(page, "describe") == []
    assert state(page) == "choose a picture first: a JPEG or PNG"

    choose(page, SCENE.image)
    described = ask(page, "describe")
    masks_seen = page.evaluate(
        "(async () => { const image = document.getElementById('answer'); await image.decode();"
        " return [image.hidden, image.naturalWidth]; })()"
    )
    pointed = ask(page, "refer", "the green bar")
    unboxed = ask(page, "boxes"), state(page)
    draw_box(page, (24 / 40, 5 / 40, 34 / 40, 35 / 40))
    boxed = ask(page, "boxes")
    asked = ask(page, "ask", "What is it?")
    page.click("#clear")
    cleared = ask(page, "boxes"), state(page)

    assert described[0] == SCENE.caption
    assert (masks_seen[0], masks_seen[1] > 300) == (False, True)
    assert pointed == ["the green bar: 18.8% of the image"]
    assert unboxed == cleared == ([], "draw a box into the picture first")
    assert boxed == ["[24, 5, 34, 35]: the blue bar"]
    assert asked == ["What is it? <bbox> the blue bar"]
    offered = page.evaluate("[...document.querySelectorAll('#kind option')].map(one => one.textContent)")
    assert offered == [KINDS[name].label for name in ("describe", "boxes", "refer", "ask")]
    complaints = [text for text in page.complaints if "status of 400" not in text]  # a browser notes every refusal
    assert (complaints, page.dialogs) == ([], [])
    assert all(address.startswith((server.address, "data:")) for address in page.requests)


def test_what_is_typed_is_text_and_no_page(page: Page) -> None:
    choose(page, SCENE.image)
    draw_box(page, (0.2, 0.2, 0.8, 0.8))

    lines = ask(page, "ask", "<img src=x onerror=alert(1)>")

    assert lines[0].startswith("<img src=x onerror=alert(1)> <bbox>")
    assert (page.evaluate("document.querySelectorAll('#lines img').length"), page.dialogs) == (0, [])


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Page, server: DemoServer, tmp_path: Path) -> None:
    page.call(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )

    assert page.evaluate("document.documentElement.scrollWidth") <= 390
