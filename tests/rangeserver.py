"""A real HTTP server that answers ranges, and misbehaves when it is told to."""

import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = ("error 500", "error 503", "short", "broken", "silent close")


class RangeServer(ThreadingHTTPServer):
    """Serves the files of a folder."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: deque[str] = deque()  # of the next answers with content, one each
        self.always = ""  # the fault of all others
        self.heads = ""  # the fault of every answer without content
        self.requests: list[tuple[str, str]] = []  # path and range of every GET
        self.delay_s = 0.0
        self.lock = threading.Lock()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: clients that are killed are part of the tests."""


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    server = RangeServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _answer(self, *, body: bool) -> None:
        path = self.server.folder / self.path.strip("/")
        asked = self.headers.get("Range", "")
        with self.server.lock:
            if body:
                self.server.requests.append((self.path, asked))
            fault = (
                self.server.faults.popleft()
                if body and self.server.faults
                else self.server.always
                if body
                else self.server.heads
            )
        threading.Event().wait(self.server.delay_s if body else 0)
        if fault.startswith("error"):
            self._send(int(fault.split()[1]), b"", 0)
        elif path.is_dir():
            listing = "".join(f'<a href="{entry.name}">{entry.name}</a>\n' for entry in sorted(path.iterdir()))
            self._send(200, listing.encode() if body else b"", len(listing), kind="text/html")
        elif not path.is_file():
            self._send(404, b"", 0)
        else:
            self._send_file(path.read_bytes(), asked, fault, body=body)

    def _send_file(self, content: bytes, asked: str, fault: str, *, body: bool) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        if span and fault != "no ranges":
            first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
            part = content[first : last + 1]
            headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            status = 206
        else:
            part, headers, status = content, {}, 200
        if fault == "silent close":
            self.close_connection = True
            self.connection.close()
            return
        promised = len(part) // 2 if fault == "short" else len(part)
        sent = part[: len(part) // 2] if fault in ("short", "broken") else part
        if fault == "flipped":
            sent = bytes([sent[0] ^ 1]) + sent[1:]
        self._send(status, sent if body else b"", promised, **headers)
        if fault == "broken":
            self.close_connection = True

    def _send(self, status: int, content: bytes, length: int, kind: str = "application/x-tar", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Content-Type", kind)
        self.send_header("Accept-Ranges", "bytes")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
