"""The little web server of `orch demo`: on this machine alone, one question at a time, nothing from the network."""

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Any

from orchestrator.errors import InputError, OrchError, SurroundingsError
from stages.demo.questions import answer, offered
from stages.predict import load_export

HOST = "127.0.0.1"
MOST_BYTES = 256 * 2**20  # of a question: a picture, and a third more for base64
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'"
PAGES: Mapping[str, tuple[str, str]] = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}

log = logging.getLogger(__name__)


class DemoServer(ThreadingHTTPServer):
    """Serves one export's page on a port of this machine."""

    daemon_threads = True

    def __init__(self, export: Path, *, port: int) -> None:
        """Takes the port (0: any that is free) and loads the model."""
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise SurroundingsError(f"port {port} cannot be had: {error}; --port names another") from None
        try:
            self.model = load_export(export)
        except BaseException:
            self.server_close()
            raise
        self.about = {"name": str(export), "questions": offered(self.model)}
        self.turn = Lock()  # a model answers one question at a time

    @property
    def address(self) -> str:
        """Returns the address of the page."""
        return f"http://{HOST}:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: DemoServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        if self.path == "/about":
            self._tell(HTTPStatus.OK, self.server.about)
        elif self.path in PAGES:
            name, kind = PAGES[self.path]
            self._send(HTTPStatus.OK, files("stages.demo").joinpath(name).read_bytes(), kind)
        else:
            self._tell(HTTPStatus.NOT_FOUND, {"error": f"there is no {self.path}"})

    def do_POST(self) -> None:
        if not self._is_ours():
            return
        try:
            with self.server.turn:
                self._tell(HTTPStatus.OK, answer(self.server.model, self._question()))
        except OrchError as error:
            self._tell(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except Exception as error:  # the next question may well be answered
            log.exception("a question could not be answered")
            self._tell(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"{type(error).__name__}: {error}"})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in http.server
        log.debug(format, *args)

    def _is_ours(self) -> bool:
        """Refuses pages of others: by the name under which they know us, and by where they come from."""
        names = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        fine = self.headers.get("Host") in names and (origin is None or origin.removeprefix("http://") in names)
        if not fine:
            self.close_connection = True
            self._tell(HTTPStatus.FORBIDDEN, {"error": "only the page of this demo is answered"})
        return fine

    def _question(self) -> Mapping[str, Any]:
        try:
            size = int(self.headers.get("Content-Length", ""))
        except ValueError:
            size = -1
        if self.path != "/ask" or not 0 <= size <= MOST_BYTES:
            self.close_connection = True  # what it says is not read
            raise InputError(f"a question goes to /ask and has {MOST_BYTES} bytes at most")
        try:
            question = json.loads(self.rfile.read(size))
        except ValueError:
            question = None
        if not isinstance(question, dict):
            raise InputError("a question is a JSON object")
        return question

    def _tell(self, status: HTTPStatus, plain: Mapping[str, Any]) -> None:
        self._send(status, json.dumps(plain).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        told = {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": POLICY}
        for name, value in {**told, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
