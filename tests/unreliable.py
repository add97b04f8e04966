"""What stands between a forwarder and a real MLflow server, and has moods."""

import base64
import contextlib
import hashlib
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self

Mood = Literal["fine", "broken", "slow", "forgetful", "strict", "unregistering"]
REGISTRY = ("/registered-models/", "/model-versions/")  # in addresses of MLflow's API
HOP = {"connection", "content-length", "date", "host", "server", "transfer-encoding"}


class Door:
    """Passes requests on to a server, as its mood is.

    fine: at once; broken: answers 500 instead; slow: `delay_s` late; forgetful: the server does what it is asked, but
    of each request the first answer is lost on the way; strict: only to whoever knows `password`, else 401;
    unregistering: answers 403 to whoever asks for the model registry.
    """

    def __init__(self, behind: str, *, delay_s: float = 0.0, password: str = "") -> None:
        """Opens on a port of its own."""
        self.mood: Mood = "fine"
        self.behind, self.delay_s = behind, delay_s
        self.credentials = "Basic " + base64.b64encode(password.encode()).decode()
        self.heard: set[str] = set()  # requests whose answer was lost
        self._server = _Frame(self)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Passage(BaseHTTPRequestHandler):
    """One request through a door."""

    server: "_Frame"

    def handle_any(self) -> None:
        """Lets it pass, or not."""
        door = self.server.door
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        refusal = self._refusal(door)
        if refusal is not None:
            self._answer(refusal, {}, b"")
            return
        if door.mood == "slow":
            time.sleep(door.delay_s)
        answer = self._passed_on(door.behind, body)
        if door.mood == "forgetful" and self._is_new(door, body):
            self.close_connection = True
            return
        self._answer(*answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _refusal(self, door: Door) -> int | None:
        if door.mood == "broken":
            return 500
        if door.mood == "strict" and self.headers.get("Authorization") != door.credentials:
            return 401
        if door.mood == "unregistering" and any(name in self.path for name in REGISTRY):
            return 403
        return None

    def _is_new(self, door: Door, body: bytes) -> bool:
        request = hashlib.sha256(f"{self.command} {self.path} ".encode() + body).hexdigest()
        new = request not in door.heard
        door.heard.add(request)
        return new

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # who asked does not wait any longer
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def _passed_on(self, behind: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        asked = urllib.request.Request(  # noqa: S310 - our own server
            behind + self.path, data=body or None, headers=headers, method=self.command
        )
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310 - our own server
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()


class _Frame(ThreadingHTTPServer):
    def __init__(self, door: Door) -> None:
        self.door = door
        super().__init__(("127.0.0.1", 0), _Passage)
