"""Takes the screenshots of the README from a real run: `python -m tests.screenshots runs/quickstart`.

Its report, light and dark, wide and on a phone, and MLflow's page of the same run, each as a PNG in `pictures/`. Of a
run that still goes on, the watch view instead.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from rich.console import Console

from orchestrator.glance import Glance
from orchestrator.goodput import Books
from orchestrator.report import make_report
from orchestrator.state import read_launch, read_tracking
from orchestrator.status import Answer
from orchestrator.watchview import frame
from tests.browser import Browser, Page

WIDTH_PX, HEIGHT_PX = 1240, 860
PHONE_PX = (390, 844)
TERMINAL, WATCH_PX = (80, 16), (1000, 465)
SERVER_PATIENCE_S = 120.0
LOADING_S = 3.0  # of pages that go on loading after they have loaded
SECTIONS = ("lineage", "samples", "curves", "where-the-time-went")


def main() -> None:
    """Takes them all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--against", type=Path, help="a second run, for a picture of the comparison")
    parser.add_argument("--output", type=Path, default=Path("pictures"))
    parser.add_argument("--without-mlflow", action="store_true")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, Browser(Path(scratch)) as browser:
        launch = read_launch(given.run)
        if launch is not None and launch.ended is None:
            taken = [take_watch(browser, given.run, Path(scratch), given.output)]
        else:
            report = make_report(given.run, Path(scratch) / "report.html", against=given.against)
            taken = [*take_report(browser, report, given.output)]
            taken += [] if given.without_mlflow else take_mlflow(browser, given.run, given.output)
    for path in taken:
        _shrink(path)
        print(path)


def take_watch(browser: Browser, run: Path, scratch: Path, output: Path) -> Path:
    """Takes the watch view as a terminal of 80 columns would show it now."""
    lines = frame(Glance(run).look(Answer(), Books(run).read(now=time.time())), *TERMINAL)
    console = Console(record=True, width=TERMINAL[0], file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(line)
    drawn = scratch / "watch.svg"
    drawn.write_text(console.export_svg(title=f"orch status {run.resolve().name} --watch"), encoding="utf-8")
    page = browser.page(width_px=WATCH_PX[0], height_px=WATCH_PX[1])
    page.open(drawn.as_uri())
    taken = page.screenshot(output / "watch.png")
    page.close()
    return taken


def take_report(browser: Browser, report: Path, output: Path) -> Iterator[Path]:
    """Yields pictures of the report: the top of it, its parts, and the same in the dark and on a phone."""
    for dark in (False, True):
        page = browser.page(width_px=WIDTH_PX, height_px=HEIGHT_PX, dark=dark)
        page.open(report.as_uri())
        look = "dark" if dark else "light"
        yield page.screenshot(output / f"report_{look}.png")
        for section in SECTIONS:
            _bring(page, section)
            yield page.screenshot(output / f"report_{section.replace('-', '_')}_{look}.png")
        page.close()
    page = browser.page(width_px=PHONE_PX[0], height_px=PHONE_PX[1], phone=True)
    page.open(report.as_uri())
    yield page.screenshot(output / "report_phone.png")
    page.close()


def take_mlflow(browser: Browser, run: Path, output: Path) -> Iterator[Path]:
    """Yields a picture of MLflow's page of the experiment, with the stages below the recipe's run."""
    launch, told = read_launch(run), read_tracking(run)
    if launch is None or not told.get("mlflow_run_id"):
        print(f"MLflow knows nothing of {run}", file=sys.stderr)
        return
    with _server(str(launch.tracking["uri"])) as address:
        experiment = f"{address}/#/experiments/{told['experiment_id']}/runs"
        page = browser.page(width_px=1440, height_px=900)
        page.open(experiment)
        page.wait(f"document.body.textContent.includes({json.dumps(run.resolve().name)})", SERVER_PATIENCE_S)
        for wanted in ("runnamecellrenderer", "chat_panel.close"):  # its stages; a panel that is in the way
            time.sleep(LOADING_S)
            page.evaluate(f"document.querySelector('[data-component-id*=\"{wanted}\"]')?.click()")
        time.sleep(LOADING_S)
        yield page.screenshot(output / "mlflow.png")
        page.close()


@contextlib.contextmanager
def _server(uri: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1",
               "--port", str(port), "--workers", "1"]  # fmt: skip
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment, start_new_session=True)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + SERVER_PATIENCE_S
    try:
        while True:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{address}/health", timeout=2),  # noqa: S310 - our own server
            ):
                break
            if time.monotonic() > deadline or server.poll() is not None:
                raise TimeoutError(f"mlflow server on {uri} does not answer")
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _shrink(path: Path) -> None:
    """Makes a picture small enough for a repository; a page has few colours."""
    Image.open(path).convert("RGB").quantize(200).save(path, optimize=True)


def _bring(page: Page, section: str) -> None:
    """Puts a section at the top of what is in view, and lets what is drawn when it is seen be drawn."""
    page.evaluate(f"document.getElementById('{section}').scrollIntoView({{behavior: 'instant'}})")
    page.evaluate("new Promise(done => setTimeout(() => done(true), 300))")


if __name__ == "__main__":
    main()
