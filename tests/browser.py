"""A headless Chromium, driven over its debugging pipe: pages, scripts, mouse, keys, screenshots. Needs no package.

`python -m tests.packages` installs Debian's Chromium where it may (`make packages` does so).

    with Browser(tmp_path) as browser:
        page = browser.page(width_px=390, dark=True)
        page.open(report.as_uri())
        assert page.evaluate("document.title") == "..." and page.complaints == []
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = "chromium"
PATIENCE_S = 60.0
# root needs --no-sandbox; the rest keeps it from calling home
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-extensions",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb", "--mute-audio",
    "--remote-debugging-pipe",
)  # fmt: skip

Event = Mapping[str, Any]


class Browser:
    """One Chromium process with an empty profile."""

    def __init__(self, profile: Path) -> None:
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        # it reads from descriptor 3 and writes to 4: ours must be out of the way of both
        theirs = [fcntl.fcntl(number, fcntl.F_DUPFD, 10) for number in (commands, answers)]
        script = f'exec "$0" "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, CHROMIUM, *FLAGS, f"--user-data-dir={profile / 'chromium'}", "about:blank"],
            pass_fds=theirs, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        for number in (commands, answers, *theirs):
            os.close(number)
        self._left = b""
        self._last_id = 0
        self._pages: dict[str, Page] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._commands)
        os.close(self._answers)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def page(self, *, width_px: int = 1280, height_px: int = 900, dark: bool = False, phone: bool = False) -> "Page":
        """Opens an empty page."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session, target)
        page.prepare(width_px, height_px, dark=dark, phone=phone)
        return page

    def send(self, method: str, parameters: Event | None = None, session: str | None = None) -> int:
        """Sends a command and returns its number."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters or {}}
        os.write(self._commands, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        return self._last_id

    def call(self, method: str, parameters: Event | None = None, session: str | None = None) -> dict[str, Any]:
        """Sends a command and returns its result."""
        number = self.send(method, parameters, session)
        found: list[Event] = []

        def answered() -> bool:
            return bool(found)

        self.listen(answered, lambda answer: found.append(answer) if answer.get("id") == number else None, what=method)
        if "error" in found[0]:
            raise RuntimeError(f"{method}: {found[0]['error']}")
        result: dict[str, Any] = found[0]["result"]
        return result

    def listen(self, done: Callable[[], bool], take: Callable[[Event], object] = lambda _: None, *, what: str) -> None:
        """Reads what the browser says until something has happened."""
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._answers, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError(f"Chromium did not answer: {what}")
            *messages, self._left = (self._left + data).split(b"\0")
            for text in messages:
                message = json.loads(text)
                if "method" in message and message.get("sessionId") in self._pages:
                    self._pages[message["sessionId"]].hear(message["method"], message["params"])
                take(message)


class Page:
    """One tab. What it complains of, asks the network for, or opens dialogs for is kept."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser, self._session, self._target = browser, session, target
        self._loaded = False
        self.complaints: list[str] = []  # console errors and warnings, exceptions, refusals of the content policy
        self.requests: list[str] = []
        self.dialogs: list[str] = []

    def prepare(self, width_px: int, height_px: int, *, dark: bool, phone: bool) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Performance.enable", {"timeDomain": "threadTicks"})
        size = {"width": width_px, "height": height_px, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", size)
        if phone:
            self.call("Emulation.setTouchEmulationEnabled", {"enabled": True})
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, address: str, *, scripted: bool = True) -> float:
        """Loads a page, scripts and first drawing included; returns how many seconds that took."""
        self._loaded = False
        begun = time.monotonic()
        self.call("Page.navigate", {"url": address})
        self._browser.listen(lambda: self._loaded, what=f"loading {address}")
        if scripted:
            self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
        return time.monotonic() - begun

    def worked_s(self) -> float:
        """Returns how long the page's own thread has computed: other work on the machine does not count."""
        metrics = {one["name"]: one["value"] for one in self.call("Performance.getMetrics")["metrics"]}
        return float(metrics["TaskDuration"])

    def evaluate(self, expression: str) -> Any:
        """Runs JavaScript and returns its value, a promise's once it has one."""
        wish = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", wish)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression[:200]}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, expression: str, patience_s: float = 10.0) -> None:
        """Waits until JavaScript is true."""
        deadline = time.monotonic() + patience_s
        while not self.evaluate(f"Boolean({expression})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"never true: {expression}")
            time.sleep(0.02)

    def place(self, selector: str, *, across: float = 0.5, down: float = 0.5) -> tuple[float, float]:
        """Brings an element into view and returns a place in it, as shares of its width and height."""
        box = self.evaluate(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)});"
            " node.scrollIntoView({block: 'center', behavior: 'instant'}); const box = node.getBoundingClientRect();"
            " return [box.x, box.y, box.width, box.height]; })()"
        )
        return box[0] + across * box[2], box[1] + down * box[3]

    def mouse(self, kind: str, at: tuple[float, float], *, clicks: int = 0) -> None:
        held = (
            {"button": "left", "buttons": 1 if kind != "mouseReleased" else 0, "clickCount": clicks} if clicks else {}
        )
        self.call("Input.dispatchMouseEvent", {"type": kind, "x": at[0], "y": at[1], **held})

    def click(self, selector: str, *, clicks: int = 1) -> None:
        at = self.place(selector)
        for number in range(1, clicks + 1):
            self.mouse("mousePressed", at, clicks=number)
            self.mouse("mouseReleased", at, clicks=number)

    def drag(self, selector: str, start: float, end: float) -> None:
        """Drags from one share of an element's width to another."""
        begin, finish = self.place(selector, across=start), self.place(selector, across=end)
        self.mouse("mousePressed", begin, clicks=1)
        self.mouse("mouseMoved", ((begin[0] + finish[0]) / 2, begin[1]), clicks=1)
        self.mouse("mouseMoved", finish, clicks=1)
        self.mouse("mouseReleased", finish, clicks=1)

    def screenshot(self, path: Path, *, selector: str | None = None, whole: bool = False) -> Path:
        """Writes a PNG: of what is in view, of an element, or of the whole page."""
        wish: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole or selector is not None}
        if whole or selector is not None:
            node = "document.documentElement" if selector is None else f"document.querySelector({json.dumps(selector)})"
            x, y, width, height = self.evaluate(
                f"(() => {{ const box = {node}.getBoundingClientRect();"
                " return [box.x + scrollX, box.y + scrollY, box.width, box.height]; })()"
            )
            wish["clip"] = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", wish)["data"]))
        return path

    def close(self) -> None:
        self._browser.call("Target.closeTarget", {"targetId": self._target})

    def call(self, method: str, parameters: Event | None = None) -> dict[str, Any]:
        return self._browser.call(method, parameters, self._session)

    def hear(self, event: str, told: Event) -> None:
        """Takes note of what the page says on its own."""
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event == "Page.javascriptDialogOpening":
            self.dialogs.append(told["message"])
            self._browser.send("Page.handleJavaScriptDialog", {"accept": True}, self._session)
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] in {"error", "warning", "assert"}:
            self.complaints.append(str(told["args"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] in {"error", "warning"}:
            self.complaints.append(told["entry"]["text"])
